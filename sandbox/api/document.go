package api

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "sigs.k8s.io/json"
	kyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/mesh/manifest"
	"github.com/weft-mesh/weft/sandbox/store"
)

// Document is one YAML (or JSON) document of a file, with its place.
type Document struct {
	File string `json:"file"` // as the user named it; "-" for stdin
	Line int    `json:"line"` // 1-based line of the document's first line
	Text string `json:"text"`
}

// Place gives "file.yaml:12" for a 1-based line inside the document (0 = its first).
func (d Document) Place(line int) string {
	if line < 1 {
		line = 1
	}
	return d.File + ":" + strconv.Itoa(d.Line+line-1)
}

// Split cuts a file into documents at lines that begin with "---" (YAML 1.2,
// section 9.2), leaving out those with nothing but comments. Nothing is decoded yet.
func Split(file string, data []byte) []Document {
	var docs []Document
	var text strings.Builder
	start, line := 1, 0
	content := false
	flush := func(next int) {
		if content {
			docs = append(docs, Document{File: file, Line: start, Text: text.String()})
		}
		text.Reset()
		start, content = next, false
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, len(data)+64*1024)
	for sc.Scan() {
		line++
		l := sc.Text()
		if strings.HasPrefix(l, "---") && (len(l) == 3 || strings.TrimLeft(l[3:], " \t") == "" || strings.HasPrefix(strings.TrimSpace(l[3:]), "#")) {
			flush(line + 1)
			continue
		}
		if t := strings.TrimSpace(l); t != "" && !strings.HasPrefix(t, "#") && t != "..." {
			content = true
		}
		text.WriteString(l)
		text.WriteByte('\n')
	}
	flush(line + 1)
	return docs
}

// Read decodes one document strictly into objects (several for a List): unknown
// fields, duplicate keys and wrong types are errors that say file, line and field.
func Read(d Document) ([]store.Object, error) {
	data, err := kyaml.YAMLToJSONStrict([]byte(d.Text))
	if err != nil {
		return nil, yamlError(d, err)
	}
	var top any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &top); err != nil {
		return nil, fmt.Errorf("%s: %w", d.Place(0), err)
	}
	m, ok := top.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: the document is not a Kubernetes object but %s; does a line before it miss its indentation?", d.Place(0), kindOfValue(top))
	}
	u := &unstructured.Unstructured{Object: m}
	if u.IsList() && strings.HasSuffix(u.GetKind(), "List") {
		items, _, err := unstructured.NestedSlice(m, "items")
		if err != nil {
			return nil, fmt.Errorf("%s: items: %w", d.Place(0), err)
		}
		var out []store.Object
		for i, it := range items {
			im, ok := it.(map[string]any)
			if !ok {
				return nil, fmt.Errorf("%s: items[%d] is not an object", d.Place(0), i)
			}
			o, err := readOne(d, "items["+strconv.Itoa(i)+"].", im)
			if err != nil {
				return nil, err
			}
			out = append(out, o)
		}
		return out, nil
	}
	o, err := readOne(d, "", m)
	if err != nil {
		return nil, err
	}
	return []store.Object{o}, nil
}

func kindOfValue(v any) string {
	switch v.(type) {
	case nil:
		return "empty"
	case []any:
		return "a list"
	}
	return "a bare value"
}

func readOne(d Document, prefix string, m map[string]any) (store.Object, error) {
	u := &unstructured.Unstructured{Object: m}
	fail := func(field, format string, args ...any) error {
		return fmt.Errorf("%s: %s", d.Place(d.lineOf(prefix+field)), fmt.Sprintf(format, args...))
	}
	if u.GetAPIVersion() == "" || u.GetKind() == "" {
		return nil, fail("", "apiVersion and kind are needed to know what this object is (got apiVersion %q, kind %q)", u.GetAPIVersion(), u.GetKind())
	}
	kind, ok := store.KindOf(u.GroupVersionKind())
	if !ok {
		return nil, fail("kind", "no matches for kind %q in version %q: %s", u.GetKind(), u.GetAPIVersion(), unknownKind(u.GetKind()))
	}
	if kind.New != nil && u.GroupVersionKind().Version != kind.Version {
		return nil, fail("apiVersion", "%s %q: apiVersion %q is not served; use %q", kind.Kind, u.GetName(), u.GetAPIVersion(), groupVersion(kind))
	}
	if _, ok := m["metadata"].(map[string]any); !ok {
		return nil, fail("", "%s: metadata is missing", kind.Kind)
	}
	if kind.New == nil {
		if u.GetName() == "" && u.GetGenerateName() == "" {
			return nil, fail("metadata", "%s: metadata.name is missing", kind.Kind)
		}
		return u, nil
	}
	data, err := u.MarshalJSON()
	if err != nil {
		return nil, fail("", "%s %q: %v", kind.Kind, u.GetName(), err)
	}
	o := kind.New()
	strict, err := kjson.UnmarshalStrict(data, o)
	if err != nil {
		field := fieldOf(err.Error())
		return nil, fail(field, "%s %q: %s", kind.Kind, u.GetName(), plainJSONError(err))
	}
	if len(strict) > 0 {
		var faults []error
		for _, e := range strict {
			field, message := manifest.StrictMessage(e, o)
			faults = append(faults, fail(field, "%s %q: %s: %s", kind.Kind, u.GetName(), field, message))
		}
		return nil, errors.Join(faults...)
	}
	if o.GetName() == "" && o.GetGenerateName() == "" {
		return nil, fail("metadata", "%s: metadata.name is missing", kind.Kind)
	}
	return o, nil
}

// unknownKind says what a kind that no sandbox knows may have been meant to be.
func unknownKind(word string) string {
	var known []string
	for _, k := range store.Kinds {
		known = append(known, k.Kind)
	}
	switch near := manifest.Nearest(word, known); {
	case strings.EqualFold(near, word):
		k, _ := store.Resource(near)
		return fmt.Sprintf("%s has apiVersion %s", near, groupVersion(k))
	case near != "":
		return fmt.Sprintf("did you mean %s?", near)
	}
	return "a sandbox does not know it; see \"weft sandbox api-resources\""
}

func groupVersion(k *store.Kind) string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

var (
	yamlLine = regexp.MustCompile(`line (\d+)`)
	goField  = regexp.MustCompile(`Go struct field (?:[A-Za-z0-9_]+\.)?(\S+) of type`)
)

// yamlError puts the file and the line in the file where the parser counts
// from the start of the document.
func yamlError(d Document, err error) error {
	msg := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "error converting YAML to JSON: ", ""), "yaml: ")
	line := 0
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = strings.TrimPrefix(strings.Replace(msg, m[0], "", 1), ": ")
		line = syntaxLine(d.Text, line)
	}
	msg = strings.Join(strings.Fields(strings.TrimPrefix(msg, "unmarshal errors:")), " ")
	return fmt.Errorf("%s: broken YAML: %s", d.Place(line), strings.TrimPrefix(msg, ": "))
}

// syntaxLine corrects the parser's line, which for many mistakes is where the
// surrounding block begins: the mistake is on the line after the longest part of the text that parses.
func syntaxLine(text string, reported int) int {
	var n yaml.Node
	if yaml.Unmarshal([]byte(text), &n) == nil {
		return reported // not the syntax is wrong but, for example, a key is there twice
	}
	lines := strings.SplitAfter(text, "\n")
	const reach = 60 // lines beyond the reported one that are looked at
	for k := min(len(lines), reported+reach); k > 0; k-- {
		if yaml.Unmarshal([]byte(strings.Join(lines[:k], "")), &n) == nil {
			return max(reported, min(k+1, len(lines)))
		}
	}
	return reported
}

func fieldOf(msg string) string {
	if m := goField.FindStringSubmatch(msg); m != nil {
		return m[1]
	}
	return ""
}

// plainJSONError says what a user wrote wrong instead of how Go failed to take it.
func plainJSONError(err error) error {
	msg := err.Error()
	if m := goField.FindStringSubmatch(msg); m != nil {
		got, _, _ := strings.Cut(strings.TrimPrefix(msg, "json: cannot unmarshal "), " into ")
		_, want, _ := strings.Cut(msg, " of type ")
		if want == "string" && got != "object" && got != "array" {
			want += " is needed: put the value in quotes"
		} else {
			want += " is needed"
		}
		return fmt.Errorf("%s: %s where %s", m[1], got, want)
	}
	return errors.New(strings.TrimPrefix(msg, "json: "))
}

// lineOf finds the line, inside the document, of a field path such as
// "spec.template.spec.containers[0].image"; the longest known part of the path
// decides. Paths that name only the end of one ("containers.image") are found too.
func (d Document) lineOf(path string) int {
	var root yaml.Node
	if path == "" || yaml.Unmarshal([]byte(d.Text), &root) != nil || len(root.Content) == 0 {
		return firstLine(d.Text)
	}
	node, line := root.Content[0], 0
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		next := (*yaml.Node)(nil)
		switch node.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(node.Content); i += 2 {
				if node.Content[i].Value == step {
					line, next = node.Content[i].Line, node.Content[i+1]
				}
			}
		case yaml.SequenceNode:
			if n, err := strconv.Atoi(step); err == nil && n >= 0 && n < len(node.Content) {
				line, next = node.Content[n].Line, node.Content[n]
			}
		}
		if next == nil {
			break
		}
		node = next
	}
	if line == 0 {
		return firstLine(d.Text)
	}
	return line
}

func firstLine(text string) int {
	for i, l := range strings.Split(text, "\n") {
		if t := strings.TrimSpace(l); t != "" && !strings.HasPrefix(t, "#") {
			return i + 1
		}
	}
	return 1
}
