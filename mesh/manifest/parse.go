package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// node is a value of a document together with the lines it came from: a tree of what
// encoding/json would give (map[string]any, []any, string, int64, float64, bool, nil) beside a tree of lines.
type node struct {
	line   int
	value  any
	fields map[string]*node // of a map
	keys   map[string]int   // lines of a map's keys
	items  []*node          // of a list
}

// document is one document of a stream.
type document struct {
	number int // 1-based, empty documents not counted
	root   *node
}

const (
	maxDepth   = 100     // nesting; people stop long before
	maxAliased = 100_000 // values that aliases may stand for: a "billion laughs" file ends here
)

// parseError is a mistake in the text itself.
type parseError struct {
	line    int
	message string
}

func (e *parseError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.message) }

var separator = regexp.MustCompile(`(?m)^---(?:[ \t\r]|$)`)

// parse splits a stream into documents. Mistakes in one document do not hide those of the others.
func parse(text []byte) ([]document, []numbered) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	var docs []document
	var errs []numbered
	number := 0
	for _, c := range chunks(text) {
		roots, err := c.parse()
		if err != nil {
			number++
			errs = append(errs, numbered{number, err})
			continue
		}
		for _, r := range roots {
			number++
			docs = append(docs, document{number, r})
		}
	}
	return docs, errs
}

// parse reads a chunk: one YAML document, or any number of JSON documents. JSON goes through its own
// parser because YAML's escapes are others and YAML has no tabs.
func (c chunk) parse() ([]*node, *parseError) {
	body, line := c.text, c.line
	if bytes.HasPrefix(body, []byte("---")) {
		if i := bytes.IndexByte(body, '\n'); i >= 0 && len(bytes.TrimSpace(body[3:i])) == 0 {
			body, line = body[i+1:], line+1
		}
	}
	var jsonErr *parseError
	if looksLikeJSON(body) {
		var roots []*node
		if roots, jsonErr = parseJSON(body, line); jsonErr == nil {
			return roots, nil
		}
	}
	root, err := parseYAML(c.text, c.line)
	switch {
	case err != nil && jsonErr != nil:
		return nil, jsonErr
	case err != nil || root == nil:
		return nil, err
	}
	return []*node{root}, nil
}

type numbered struct {
	document int
	err      *parseError
}

// looksLikeJSON tells JSON from YAML; it takes YAML's flow style with quoted keys for JSON too.
func looksLikeJSON(t []byte) bool {
	t = bytes.TrimLeft(t, " \t\r\n")
	if len(t) == 0 || t[0] != '{' {
		return false
	}
	t = bytes.TrimLeft(t[1:], " \t\r\n")
	return len(t) > 0 && (t[0] == '"' || t[0] == '}')
}

type chunk struct {
	text []byte
	line int // of its first line
}

// chunks cuts a stream at its "---" lines.
func chunks(text []byte) []chunk {
	var out []chunk
	line, start := 1, 0
	for _, m := range separator.FindAllIndex(text, -1) {
		out = append(out, chunk{text[start:m[0]], line})
		line += bytes.Count(text[start:m[0]], []byte{'\n'})
		start = m[0]
	}
	return append(out, chunk{text[start:], line})
}

// parseYAML reads one document; nil when it is empty.
func parseYAML(text []byte, firstLine int) (*node, *parseError) {
	if directivesOnly(text) {
		return nil, nil
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := decode(d, &doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, yamlError(err, text, firstLine)
	}
	var rest yaml.Node
	if err := decode(d, &rest); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, yamlError(err, text, firstLine)
		}
		return nil, &parseError{firstLine + rest.Line - 1, "a second document begins here without a line \"---\" before it"}
	}
	if len(doc.Content) == 0 || doc.Content[0].ShortTag() == "!!null" {
		return nil, nil
	}
	c := converter{offset: firstLine - 1}
	return c.node(doc.Content[0], 0)
}

// decode calls the YAML library, which panics on some malformed input.
func decode(d *yaml.Decoder, into *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	return d.Decode(into)
}

// directivesOnly recognises what may stand before the first "---": comments, blank lines, %YAML.
func directivesOnly(text []byte) bool {
	for l := range bytes.Lines(text) {
		l = bytes.TrimSpace(l)
		if len(l) > 0 && l[0] != '#' && l[0] != '%' {
			return false
		}
	}
	return true
}

var (
	lineInMessage = regexp.MustCompile(`line (\d+): `)
	unknownAnchor = regexp.MustCompile(`unknown anchor '(.*)' referenced`)
)

// yamlError finds the line of the library's error. The library counts the lines of its parser's errors from 0
// and those of its scanner's from 1, gives none for the first line, and none for unknown anchors.
func yamlError(err error, text []byte, firstLine int) *parseError {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := lineInMessage.FindStringSubmatchIndex(message); m != nil {
		line, _ = strconv.Atoi(message[m[2]:m[3]])
		message = message[:m[0]] + message[m[1]:]
		if strings.HasPrefix(message, "did not find expected") {
			line++
		}
	} else if m := unknownAnchor.FindStringSubmatch(message); m != nil {
		if i := bytes.Index(text, []byte("*"+m[1])); i >= 0 {
			line += bytes.Count(text[:i], []byte{'\n'})
		}
	}
	if last := 1 + bytes.Count(bytes.TrimRight(text, " \t\r\n"), []byte{'\n'}); line > last {
		line = last // an unclosed bracket is found at the end of the text
	}
	return &parseError{firstLine + line - 1, "not YAML: " + message}
}

// converter resolves scalars as kubectl does: YAML 1.1, so that a plain yes, no, on and off are booleans.
type converter struct {
	offset  int                 // added to the lines of the library
	open    map[*yaml.Node]bool // aliases being expanded
	aliased int                 // values found in them
}

func (c *converter) fail(n *yaml.Node, format string, args ...any) (*node, *parseError) {
	return nil, &parseError{n.Line + c.offset, fmt.Sprintf(format, args...)}
}

func (c *converter) node(n *yaml.Node, depth int) (*node, *parseError) {
	if depth > maxDepth {
		return c.fail(n, "nested more than %d levels deep", maxDepth)
	}
	if len(c.open) > 0 {
		if c.aliased++; c.aliased > maxAliased {
			return c.fail(n, "its aliases stand for more than %d values", maxAliased)
		}
	}
	switch n.Kind {
	case yaml.AliasNode:
		if c.open[n.Alias] {
			return c.fail(n, "alias *%s contains itself", n.Value)
		}
		if c.open == nil {
			c.open = map[*yaml.Node]bool{}
		}
		c.open[n.Alias] = true
		defer delete(c.open, n.Alias)
		return c.node(n.Alias, depth+1)
	case yaml.SequenceNode:
		out := &node{line: n.Line + c.offset}
		list := make([]any, 0, len(n.Content))
		for _, e := range n.Content {
			item, err := c.node(e, depth+1)
			if err != nil {
				return nil, err
			}
			out.items, list = append(out.items, item), append(list, item.value)
		}
		out.value = list
		return out, nil
	case yaml.MappingNode:
		return c.mapping(n, depth)
	}
	v, err := c.scalar(n)
	if err != nil {
		return nil, err
	}
	return &node{line: n.Line + c.offset, value: v}, nil
}

func (c *converter) mapping(n *yaml.Node, depth int) (*node, *parseError) {
	out := &node{line: n.Line + c.offset, fields: map[string]*node{}, keys: map[string]int{}}
	value := make(map[string]any, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.ShortTag() == "!!merge" {
			merges = append(merges, v)
			continue
		}
		if k.Kind != yaml.ScalarNode {
			return c.fail(k, "a mapping's key must be a string")
		}
		if _, twice := out.fields[k.Value]; twice {
			return c.fail(k, "key %q stands here a second time; the first is in line %d", k.Value, out.keys[k.Value])
		}
		field, err := c.node(v, depth+1)
		if err != nil {
			return nil, err
		}
		out.fields[k.Value], out.keys[k.Value], value[k.Value] = field, k.Line+c.offset, field.value
	}
	for _, m := range merges { // "<<: *base": what the mapping says itself wins
		list := []*yaml.Node{m}
		if m.Kind == yaml.SequenceNode {
			list = m.Content
		}
		for _, e := range list {
			base, err := c.node(e, depth+1)
			if err != nil {
				return nil, err
			}
			if base.fields == nil {
				return c.fail(e, "\"<<\" needs a mapping")
			}
			for k, f := range base.fields {
				if _, own := out.fields[k]; !own {
					out.fields[k], out.keys[k], value[k] = f, base.keys[k], f.value
				}
			}
		}
	}
	out.value = value
	return out, nil
}

func (c *converter) scalar(n *yaml.Node) (any, *parseError) {
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true"), nil
	case "!!int":
		text := strings.ReplaceAll(n.Value, "_", "")
		if i, err := strconv.ParseInt(text, 0, 64); err == nil {
			return i, nil
		}
		f, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, &parseError{n.Line + c.offset, fmt.Sprintf("%q is not a number", n.Value)}
		}
		return f, nil
	case "!!float":
		f, err := strconv.ParseFloat(strings.ReplaceAll(n.Value, "_", ""), 64)
		if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
			return nil, &parseError{n.Line + c.offset, fmt.Sprintf("%q is not a number that JSON knows", n.Value)}
		}
		return number(f), nil
	case "!!str", "!!timestamp":
		if b, ok := oldBooleans[n.Value]; ok && n.Style == 0 {
			return b, nil
		}
		return n.Value, nil
	case "!!binary":
		return n.Value, nil
	}
	return nil, &parseError{n.Line + c.offset, fmt.Sprintf("tag %s is not for manifests", n.Tag)}
}

// oldBooleans are YAML 1.1's; they must be told from strings because kubectl does.
var oldBooleans = map[string]bool{
	"yes": true, "Yes": true, "YES": true, "on": true, "On": true, "ON": true,
	"no": false, "No": false, "NO": false, "off": false, "Off": false, "OFF": false,
}

// number gives whole numbers as integers, also 50.0: that is how Kubernetes decodes JSON.
func number(f float64) any {
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return int64(f)
	}
	return f
}

// parseJSON reads JSON documents, one after the other.
func parseJSON(text []byte, firstLine int) ([]*node, *parseError) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	p := jsonParser{d: d, text: text, line: firstLine}
	var roots []*node
	for {
		root, err := p.value(0)
		if errors.Is(err, io.EOF) && root == nil {
			return roots, nil
		}
		if err != nil {
			var pe *parseError
			if errors.As(err, &pe) {
				return nil, pe
			}
			p.locate(errorOffset(err, d.InputOffset()))
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, &parseError{p.line, "not JSON: the text ends in the middle of a document"}
			}
			return nil, &parseError{p.line, "not JSON: " + strings.TrimPrefix(err.Error(), "json: ")}
		}
		roots = append(roots, root)
	}
}

func errorOffset(err error, otherwise int64) int64 {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return syntax.Offset
	}
	return otherwise
}

type jsonParser struct {
	d      *json.Decoder
	text   []byte
	offset int64
	line   int
}

// locate sets line to that of an offset, which never decreases.
func (p *jsonParser) locate(offset int64) int {
	offset = min(offset, int64(len(p.text)))
	if offset > p.offset {
		p.line += bytes.Count(p.text[p.offset:offset], []byte{'\n'})
		p.offset = offset
	}
	return p.line
}

func (p *jsonParser) value(depth int) (*node, error) {
	t, err := p.d.Token()
	if err != nil {
		return nil, err
	}
	n := &node{line: p.locate(p.d.InputOffset())}
	if depth > maxDepth {
		return nil, &parseError{n.line, fmt.Sprintf("nested more than %d levels deep", maxDepth)}
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '[' {
			return p.list(n, depth)
		}
		return p.object(n, depth)
	case json.Number:
		if i, err := t.Int64(); err == nil {
			n.value = i
		} else if f, err := t.Float64(); err == nil {
			n.value = number(f)
		} else {
			return nil, &parseError{n.line, fmt.Sprintf("%s is too large a number", t)}
		}
	default:
		n.value = t
	}
	return n, nil
}

func (p *jsonParser) list(n *node, depth int) (*node, error) {
	list := []any{}
	for p.d.More() {
		item, err := p.value(depth + 1)
		if err != nil {
			return nil, unexpectedEnd(err)
		}
		n.items, list = append(n.items, item), append(list, item.value)
	}
	n.value = list
	_, err := p.d.Token()
	return n, unexpectedEnd(err)
}

func (p *jsonParser) object(n *node, depth int) (*node, error) {
	value := map[string]any{}
	n.fields, n.keys = map[string]*node{}, map[string]int{}
	for p.d.More() {
		t, err := p.d.Token()
		if err != nil {
			return nil, unexpectedEnd(err)
		}
		k, _ := t.(string) // the decoder accepts nothing else as a key
		line := p.locate(p.d.InputOffset())
		if first, twice := n.keys[k]; twice {
			return nil, &parseError{line, fmt.Sprintf("key %q stands here a second time; the first is in line %d", k, first)}
		}
		field, err := p.value(depth + 1)
		if err != nil {
			return nil, unexpectedEnd(err)
		}
		n.fields[k], n.keys[k], value[k] = field, line, field.value
	}
	n.value = value
	_, err := p.d.Token()
	return n, unexpectedEnd(err)
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

var pathStep = regexp.MustCompile(`\.?([^.\[\]]+)|\[([^\]]*)\]`)

// lineOf finds the line of a field path as Kubernetes writes them: "spec.http[0].route", or with a map's key in
// brackets. It is that of the deepest part that exists.
func (n *node) lineOf(path string) int {
	line := n.line
	for _, m := range pathStep.FindAllStringSubmatch(path, -1) {
		name := m[1]
		if name == "" {
			if i, err := strconv.Atoi(m[2]); err == nil && n.items != nil {
				if i < 0 || i >= len(n.items) {
					return line
				}
				n = n.items[i]
				line = n.line
				continue
			}
			name = strings.Trim(m[2], `"`)
		}
		field := n.fields[name]
		if field == nil {
			return line
		}
		line = n.keys[name]
		n = field
	}
	return line
}
