package templates

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
)

// The built-in templates.
var (
	//go:embed sidecar.yaml
	Sidecar []byte
	//go:embed gateway.yaml
	Gateway []byte
)

// Template is a parsed and checked template. It is immutable and safe for concurrent use.
type Template struct {
	name string
	root builder
}

// Parse reads one YAML document in the shape of a Pod (metadata and spec). known says which values exist. The error names the
// template, the line and the field.
func Parse(name string, text []byte, known func(value string) bool) (*Template, error) {
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("no document")
		}
		return nil, fmt.Errorf("template %s: %w", name, err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("template %s: more than one document", name)
	}
	c := compiler{name: name, known: known}
	b, err := c.compile(doc.Content[0], reflect.TypeFor[corev1.Pod](), "")
	if err != nil {
		return nil, err
	}
	return &Template{name: name, root: b}, nil
}

// Build evaluates the template. The result shares no memory with the template, but may share what Values hold.
func (t *Template) Build(v *Values) (*corev1.Pod, error) {
	pod := new(corev1.Pod)
	if _, err := t.root(v, reflect.ValueOf(pod).Elem()); err != nil {
		if v := new(valueError); errors.As(err, v) {
			return nil, v.error // the template is not to blame
		}
		return nil, fmt.Errorf("template %s: %w", t.name, err)
	}
	return pod, nil
}

// builder sets one field (to is its zero value) and says whether it is present.
type builder func(v *Values, to reflect.Value) (present bool, err error)

type compiler struct {
	name  string
	known func(string) bool
}

func (c *compiler) fail(n *yaml.Node, path, format string, args ...any) error {
	where := ""
	if path != "" {
		where = strings.TrimPrefix(path, ".") + ": "
	}
	return fmt.Errorf("template %s, line %d: %s%s", c.name, n.Line, where, fmt.Sprintf(format, args...))
}

func (c *compiler) compile(n *yaml.Node, t reflect.Type, path string) (builder, error) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode {
		return c.scalar(n, t, path)
	}
	if t.Kind() == reflect.Pointer {
		inner, err := c.compile(n, t.Elem(), path)
		if err != nil {
			return nil, err
		}
		return func(v *Values, to reflect.Value) (bool, error) {
			p := reflect.New(t.Elem())
			present, err := inner(v, p.Elem())
			if present {
				to.Set(p)
			}
			return present, err
		}, nil
	}
	switch {
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Struct && !IsScalar(t):
		return c.structure(n, t, path)
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
		return c.mapping(n, t, path)
	case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		return c.sequence(n, t, path)
	}
	return nil, c.fail(n, path, "want %s", describe(t))
}

// scalar is a constant, checked now by the decoder that the API server uses, or an expression.
func (c *compiler) scalar(n *yaml.Node, t reflect.Type, path string) (builder, error) {
	if n.ShortTag() == "!!str" {
		l, plain, ok, err := parseLeaf(n.Value, c.known)
		if err != nil {
			return nil, c.fail(n, path, "%v", err)
		}
		if ok {
			return func(v *Values, to reflect.Value) (bool, error) {
				x, err := l.value(v)
				if err != nil || x == nil {
					return false, err
				}
				if err := assign(to, x); err != nil {
					return false, fmt.Errorf("%s: %s: %w", strings.TrimPrefix(path, "."), l, err)
				}
				return true, nil
			}, nil
		}
		n = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: plain, Line: n.Line}
	}
	var x any
	if err := n.Decode(&x); err != nil {
		return nil, c.fail(n, path, "%v", err)
	}
	text, err := json.Marshal(x)
	if err != nil {
		return nil, c.fail(n, path, "%v", err)
	}
	check := reflect.New(t)
	if err := json.Unmarshal(text, check.Interface()); err != nil {
		return nil, c.fail(n, path, "%s where %s is wanted", text, describe(t))
	}
	if x == nil {
		return func(*Values, reflect.Value) (bool, error) { return false, nil }, nil
	}
	constant := check.Elem()
	if t.Kind() == reflect.Pointer {
		return func(_ *Values, to reflect.Value) (bool, error) {
			p := reflect.New(t.Elem())
			p.Elem().Set(constant.Elem())
			to.Set(p)
			return true, nil
		}, nil
	}
	return func(_ *Values, to reflect.Value) (bool, error) {
		to.Set(constant)
		return true, nil
	}, nil
}

// condition takes $if and $unless out of a mapping.
func (c *compiler) condition(n *yaml.Node, path string) (rest []*yaml.Node, holds func(*Values) (bool, error), err error) {
	holds = func(*Values) (bool, error) { return true, nil }
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if seen[key.Value] {
			return nil, nil, c.fail(key, path, "%q stands here twice", key.Value)
		}
		seen[key.Value] = true
		if key.Value != "$if" && key.Value != "$unless" {
			rest = append(rest, key, val)
			continue
		}
		l, _, ok, err := parseLeaf(val.Value, c.known)
		if err != nil || !ok || val.Kind != yaml.ScalarNode {
			return nil, nil, c.fail(val, path, "%s wants an expression such as ${name}", key.Value)
		}
		want, before := key.Value == "$if", holds
		holds = func(v *Values) (bool, error) {
			if ok, err := before(v); err != nil || !ok {
				return false, err
			}
			x, err := l.value(v)
			return truthy(x) == want, err
		}
	}
	return rest, holds, nil
}

func (c *compiler) structure(n *yaml.Node, t reflect.Type, path string) (builder, error) {
	type member struct {
		index []int
		build builder
	}
	content, holds, err := c.condition(n, path)
	if err != nil {
		return nil, err
	}
	var members []member
	for i := 0; i < len(content); i += 2 {
		key, val := content[i], content[i+1]
		f := FieldIndex(t, key.Value)
		if f == nil {
			return nil, c.fail(key, path, "%s has no field %q", t.Name(), key.Value)
		}
		b, err := c.compile(val, t.FieldByIndex(f).Type, path+"."+key.Value)
		if err != nil {
			return nil, err
		}
		members = append(members, member{f, b})
	}
	return func(v *Values, to reflect.Value) (bool, error) {
		if ok, err := holds(v); err != nil || !ok {
			return false, err
		}
		any := len(members) == 0 // {} is meant: emptyDir: {}
		for _, m := range members {
			present, err := m.build(v, to.FieldByIndex(m.index))
			if err != nil {
				return false, err
			}
			any = any || present
		}
		return any, nil
	}, nil
}

func (c *compiler) mapping(n *yaml.Node, t reflect.Type, path string) (builder, error) {
	type entry struct {
		key   reflect.Value
		build builder
	}
	content, holds, err := c.condition(n, path)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for i := 0; i < len(content); i += 2 {
		b, err := c.compile(content[i+1], t.Elem(), path+"["+content[i].Value+"]")
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{reflect.ValueOf(content[i].Value).Convert(t.Key()), b})
	}
	return func(v *Values, to reflect.Value) (bool, error) {
		if ok, err := holds(v); err != nil || !ok {
			return false, err
		}
		m := reflect.MakeMapWithSize(t, len(entries))
		for _, e := range entries {
			val := reflect.New(t.Elem()).Elem()
			present, err := e.build(v, val)
			if err != nil {
				return false, err
			}
			if present {
				m.SetMapIndex(e.key, val)
			}
		}
		if m.Len() == 0 && len(entries) > 0 {
			return false, nil
		}
		to.Set(m)
		return true, nil
	}, nil
}

func (c *compiler) sequence(n *yaml.Node, t reflect.Type, path string) (builder, error) {
	type item struct {
		splice *leaf // a lone expression, whose value may be a list
		build  builder
	}
	var items []item
	for i, node := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		if node.Kind == yaml.ScalarNode && node.ShortTag() == "!!str" {
			if l, _, ok, err := parseLeaf(node.Value, c.known); err == nil && ok && len(l.refs) == 1 && l.text[0]+l.text[1] == "" {
				items = append(items, item{splice: &l})
				continue
			}
		}
		b, err := c.compile(node, t.Elem(), at)
		if err != nil {
			return nil, err
		}
		items = append(items, item{build: b})
	}
	return func(v *Values, to reflect.Value) (bool, error) {
		list := reflect.MakeSlice(t, len(items), len(items)+4)
		n := 0
		for i, it := range items {
			if it.splice == nil {
				el := list.Index(n)
				present, err := it.build(v, el)
				if err != nil {
					return false, err
				}
				if present {
					n++
				} else {
					el.SetZero()
				}
				continue
			}
			x, err := it.splice.value(v)
			if err != nil {
				return false, err
			}
			if x == nil {
				continue
			}
			if s := reflect.ValueOf(x); s.Type() == t {
				list = reflect.AppendSlice(list.Slice(0, n), s)
				n = list.Len()
				// The items that are still to come need room.
				for range len(items) - i - 1 {
					list = reflect.Append(list, reflect.Zero(t.Elem()))
				}
				continue
			}
			if err := assign(list.Index(n), x); err != nil {
				return false, fmt.Errorf("%s[%d]: %s: %w", strings.TrimPrefix(path, "."), i, it.splice, err)
			}
			n++
		}
		if n == 0 && len(items) > 0 {
			return false, nil
		}
		to.Set(list.Slice(0, n))
		return true, nil
	}, nil
}
