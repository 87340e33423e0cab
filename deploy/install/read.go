package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"
	kubejson "sigs.k8s.io/json"

	"github.com/weft-mesh/weft/mesh/manifest"
)

// File is a text with the name that the user knows it by.
type File struct {
	Name string
	Text []byte
}

// Mistake is one thing that is wrong with what the user wants.
type Mistake struct {
	Source  string // file, or "--set a.b=c"
	Line    int    // in a file; 0 when it is not known
	Field   string // "spec.components.pilot"
	Message string // what is wrong, and what to do
}

// Error gives "mesh.yaml:7: spec.components.piilot: unknown field; did you mean \"pilot\"?".
func (m *Mistake) Error() string {
	var b strings.Builder
	b.WriteString(m.Source)
	if m.Line > 0 {
		fmt.Fprintf(&b, ":%d", m.Line)
	}
	if m.Field != "" {
		b.WriteString(": " + m.Field)
	}
	b.WriteString(": " + m.Message)
	return b.String()
}

// removed are fields of older files, and what to do about them. Keys are paths without indices.
var removed = map[string]string{
	"spec.addonComponents":            "addons are no part of a mesh's installation any more (as in Istio since 1.8): install Kiali, Prometheus, Grafana and Jaeger by their own charts, and remove this field",
	"spec.installPackagePath":         "the charts are part of weft: remove this field",
	"spec.components.citadel":         "its work is done by pilot: remove this field",
	"spec.components.galley":          "its work is done by pilot: remove this field",
	"spec.components.sidecarInjector": "its work is done by pilot: remove this field",
	"spec.components.nodeAgent":       "its work is done by pilot: remove this field",
	"spec.components.policy":          "Mixer is gone, as in Istio since 1.8: remove this field, and use AuthorizationPolicy",
	"spec.components.telemetry":       "Mixer is gone, as in Istio since 1.8: remove this field, and use Telemetry",
	"spec.components.cni.k8s.overlay": "did you mean \"overlays\"?",
}

// lines finds where a path stands in a file.
type lines struct{ root *yaml.Node }

// of gives the line of "a.b[0].c", or of the nearest thing above it that stands in the file.
func (l lines) of(path string) int {
	n, line := l.root, 0
	if n != nil {
		line = n.Line
	}
	steps, err := parsePath(path)
	if err != nil {
		return line
	}
	for _, s := range steps {
		for n != nil && n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n == nil {
			return line
		}
		var next *yaml.Node
		switch {
		case n.Kind == yaml.MappingNode && s.key != "":
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == s.key {
					line, next = n.Content[i].Line, n.Content[i+1]
				}
			}
		case n.Kind == yaml.SequenceNode && s.index >= 0 && s.index < len(n.Content):
			next = n.Content[s.index]
			line = next.Line
		}
		if n = next; n == nil {
			return line
		}
	}
	return line
}

// written is one IstioOperator as it stood in a file.
type written struct {
	source string
	tree   Tree
	lines  lines
}

func (w written) mistake(field, format string, args ...any) *Mistake {
	return &Mistake{Source: w.source, Line: w.lines.of(field), Field: field, Message: fmt.Sprintf(format, args...)}
}

// readFile reads the IstioOperators of a file; there may be several documents, and Kubernetes Lists of them. Everything else in
// the file is a mistake: nobody would apply it.
func readFile(f File) ([]written, error) {
	var out []written
	var mistakes []error
	d := yaml.NewDecoder(bytes.NewReader(f.Text))
	for {
		var doc yaml.Node
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: %s", f.Name, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if len(doc.Content) == 0 || doc.Content[0].ShortTag() == "!!null" {
			continue
		}
		w := written{source: f.Name, lines: lines{doc.Content[0]}}
		var v any
		if err := doc.Decode(&v); err != nil {
			return nil, fmt.Errorf("%s: %s", f.Name, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		tree, ok := plain(v).(Tree)
		if !ok {
			return nil, &Mistake{Source: f.Name, Line: doc.Content[0].Line, Message: "a mapping was expected: an IstioOperator"}
		}
		w.tree = tree
		if err := w.check(); err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		out = append(out, w)
	}
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: the file is empty: an IstioOperator was expected", f.Name)
	}
	return out, nil
}

// check finds what does not belong into an IstioOperator.
func (w written) check() error {
	if v, kind := w.tree["apiVersion"], w.tree["kind"]; v != GroupVersion || kind != Kind {
		if kind == nil && v == nil {
			return w.mistake("", "apiVersion and kind are missing: begin the file with \"apiVersion: %s\" and \"kind: %s\"; values for Helm go below spec.values", GroupVersion, Kind)
		}
		return w.mistake("kind", "%v %v is not installed by weft: only %s %s is read here; apply other objects with kubectl", v, kind, GroupVersion, Kind)
	}
	return errors.Join(checkTree(w.tree, w.source, w.lines.of)...)
}

// checkTree decodes strictly and words what is wrong; line may be nil.
func checkTree(t Tree, source string, line func(string) int) []error {
	if line == nil {
		line = func(string) int { return 0 }
	}
	text, err := json.Marshal(t)
	if err != nil {
		return []error{&Mistake{Source: source, Message: err.Error()}}
	}
	var o Operator
	strict, err := kubejson.UnmarshalStrict(text, &o)
	if err != nil {
		field, message := typeMistake(err)
		return []error{&Mistake{Source: source, Line: line(field), Field: field, Message: message}}
	}
	var out []error
	for _, e := range strict {
		field, message := manifest.StrictMessage(e, &o)
		if remedy, ok := removed[withoutIndices(field)]; ok {
			message = remedy
		}
		out = append(out, &Mistake{Source: source, Line: line(field), Field: field, Message: message})
	}
	return out
}

func withoutIndices(path string) string {
	for {
		i := strings.IndexByte(path, '[')
		j := strings.IndexByte(path, ']')
		if i < 0 || j < i {
			return path
		}
		path = path[:i] + path[j+1:]
	}
}

// typeMistake words an error of decoding; Kubernetes' decoder says "json: cannot unmarshal string into Go struct field K8s.spec.replicaCount of type int32".
func typeMistake(err error) (field, message string) {
	text := strings.TrimPrefix(err.Error(), "json: ")
	rest, ok := strings.CutPrefix(text, "cannot unmarshal ")
	if !ok {
		return "", text
	}
	words := strings.Fields(rest)
	i, j := slices.Index(words, "field"), slices.Index(words, "type")
	if i < 1 || i+1 >= len(words) || j < 0 || j+1 >= len(words) {
		return "", text
	}
	_, field, _ = strings.Cut(words[i+1], ".")
	want := map[string]string{"int32": "whole number", "int64": "whole number", "bool": "true or false", "string": "text in quotes"}[words[j+1]]
	switch {
	case want != "":
	case strings.HasPrefix(words[j+1], "[]"):
		want = "list"
	default:
		want = "mapping"
	}
	return field, fmt.Sprintf("a %s does not fit here: %s was expected", words[0], want)
}
