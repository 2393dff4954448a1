// How many threads a parallel loop of this library would use now: lets a test see that they are torch's.

#include "elements.h"

LUTHIER_EXPORT void max_threads(int64_t* out) {
#ifdef _OPENMP
    *out = omp_get_max_threads();
#else
    *out = 1;
#endif
}
