"""A folder with an ONNX graph in 32 bits, with keys and values of earlier tokens, for ONNX Runtime."""

from luthier.export.job import Job, Written

HOW = """    import onnxruntime

    session = onnxruntime.InferenceSession("{name}/model.onnx")
    print([one.name for one in session.get_inputs()])
"""


def write(job: Job) -> Written:
    """The graph with its tokenizer, template and configuration."""
    from luthier.export.from_run import model_folder, new_folder
    from luthier.export.onnx.write import write_onnx
    from luthier.runs.atomic import atomic_folder

    target = new_folder(job.target("onnx"))
    with model_folder(job, target) as folder, atomic_folder(target, replace=False) as inside:
        write_onnx(folder, inside)
    return Written("ONNX graph", target, target, how=HOW.format(name=target.name))
