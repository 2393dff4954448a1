// Runs templates as Ollama does: Go's text/template, the function json, and values with Go's own types.
//
// Each line of the input is {"template": ..., "values": ...} with the values that `ollama_values` makes; each line of
// the output is the text, as JSON.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

// Raw is JSON whose fields keep their order. Printed, it is JSON, as Ollama's tools and arguments are.
type Raw struct{ json.RawMessage }

func (raw Raw) String() string { return inJSON(raw) }

type Call struct {
	Function struct {
		Name      string
		Arguments Raw
	}
}

type Message struct {
	Role, Content, Thinking string
	ToolCalls               []Call
}

// Tool is one whose field Function can be asked for.
type Tool struct {
	Raw
	Function Raw
}

func (tool *Tool) UnmarshalJSON(text []byte) error {
	var inside struct{ Function Raw }
	tool.RawMessage = append([]byte(nil), text...)
	err := json.Unmarshal(text, &inside)
	tool.Function = inside.Function
	return err
}

func (tool Tool) MarshalJSON() ([]byte, error) { return json.Marshal(tool.Raw) }

type Values struct {
	System, Response  string
	Messages          []*Message
	Tools             []Tool
	Think, IsThinkSet bool
}

func inJSON(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func run(source string, values Values) string {
	made, err := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": inJSON}).Parse(source)
	if err != nil {
		return "refused: " + err.Error()
	}
	var text strings.Builder
	err = made.Execute(&text, map[string]any{
		"System": values.System, "Messages": values.Messages, "Tools": values.Tools, "Response": values.Response,
		"Think": values.Think, "IsThinkSet": values.IsThinkSet,
	})
	if err != nil {
		return "failed: " + err.Error()
	}
	return text.String()
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var asked struct {
			Template string
			Values   Values
		}
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		os.Stdout.WriteString(inJSON(run(asked.Template, asked.Values)) + "\n")
	}
}
