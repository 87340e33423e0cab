package install

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// objectPatch is a strategic merge patch of one rendered object.
type objectPatch struct {
	kind, name  string
	patch       Tree
	replaceSpec []string // fields of spec that exclude each other: the chart's go when the patch has one of them
}

// Run is Helm's post-renderer: it gets what the charts made.
func (r Release) Run(rendered *bytes.Buffer) (*bytes.Buffer, error) {
	if len(r.patches) == 0 && len(r.overlays) == 0 {
		return rendered, nil
	}
	objects, err := readObjects(rendered.Bytes())
	if err != nil {
		return nil, err
	}
	for _, p := range r.patches {
		if err := p.apply(objects); err != nil {
			return nil, fmt.Errorf("%s: %w", r.Component, err)
		}
	}
	for _, o := range r.overlays {
		if err := o.apply(objects); err != nil {
			return nil, fmt.Errorf("%s: k8s.overlays: %w", r.Component, err)
		}
	}
	return writeObjects(objects)
}

// readObjects reads a stream of YAML documents.
func readObjects(text []byte) ([]Tree, error) {
	var out []Tree
	d := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		doc, err := d.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		var t Tree
		if err := yaml.Unmarshal(doc, &t); err != nil {
			return nil, fmt.Errorf("a chart made something that is not YAML: %w", err)
		}
		if len(t) > 0 {
			out = append(out, whole(t).(Tree))
		}
	}
}

func writeObjects(objects []Tree) (*bytes.Buffer, error) {
	var b bytes.Buffer
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			return nil, err
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	return &b, nil
}

// find returns the index of an object of the chart.
func find(objects []Tree, kind, name string) (int, error) {
	var have []string
	for i, o := range objects {
		n, _ := get(o, "metadata", "name")
		if o["kind"] == kind && n == name {
			return i, nil
		}
		have = append(have, fmt.Sprintf("%v/%v", o["kind"], n))
	}
	return 0, fmt.Errorf("the chart makes no %s %q; it makes %s", kind, name, strings.Join(have, ", "))
}

func (p objectPatch) apply(objects []Tree) error {
	i, err := find(objects, p.kind, p.name)
	if err != nil {
		return err
	}
	var schema any
	switch p.kind {
	case "Deployment":
		schema = appsv1.Deployment{}
	case "DaemonSet":
		schema = appsv1.DaemonSet{}
	case "Service":
		schema = corev1.Service{}
	case "PodDisruptionBudget":
		schema = policyv1.PodDisruptionBudget{}
	default:
		return fmt.Errorf("a %s cannot be patched", p.kind)
	}
	said, _ := p.patch["spec"].(Tree)
	if slices.ContainsFunc(p.replaceSpec, func(k string) bool { _, ok := said[k]; return ok }) {
		if spec := asTree(objects[i]["spec"]); spec != nil {
			maps.DeleteFunc(spec, func(k string, _ any) bool { return slices.Contains(p.replaceSpec, k) })
		}
	}
	object, err := json.Marshal(objects[i])
	if err != nil {
		return err
	}
	patch, err := json.Marshal(p.patch)
	if err != nil {
		return err
	}
	merged, err := strategicpatch.StrategicMergePatch(object, patch, schema)
	if err != nil {
		return fmt.Errorf("%s %s: %w", p.kind, p.name, err)
	}
	var out Tree
	if err := json.Unmarshal(merged, &out); err != nil {
		return err
	}
	objects[i] = whole(out).(Tree)
	return nil
}

func (o Overlay) apply(objects []Tree) error {
	i, err := find(objects, o.Kind, o.Name)
	if err != nil {
		return err
	}
	for _, p := range o.Patches {
		steps, err := overlayPath(p.Path)
		if err != nil {
			return fmt.Errorf("%s %s: %w", o.Kind, o.Name, err)
		}
		out, err := overlaySet(objects[i], steps, p.Value)
		if err != nil {
			return fmt.Errorf("%s %s: %s: %w", o.Kind, o.Name, p.Path, err)
		}
		objects[i] = out.(Tree)
	}
	return nil
}

// overlayPath splits "spec.template.spec.containers.[name:discovery].args.[-1]"; "\." and "\:" stand for themselves.
func overlayPath(text string) ([]string, error) {
	var out []string
	var b strings.Builder
	inside := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text) && !inside:
			i++
			b.WriteByte(text[i])
		case c == '[':
			if b.Len() > 0 {
				out = append(out, b.String())
				b.Reset()
			}
			inside = true
			b.WriteByte(c)
		case c == ']' && inside:
			inside = false
			b.WriteByte(c)
			out = append(out, b.String())
			b.Reset()
		case c == '.' && !inside:
			if b.Len() > 0 {
				out = append(out, b.String())
				b.Reset()
			}
		default:
			b.WriteByte(c)
		}
	}
	if inside {
		return nil, fmt.Errorf("path %q: \"[\" without \"]\"", text)
	}
	if b.Len() > 0 {
		out = append(out, b.String())
	}
	if len(out) == 0 {
		return nil, errors.New("a patch has no path")
	}
	return out, nil
}

// overlaySet puts value at a path, or takes away what is there when value is nil.
func overlaySet(v any, path []string, value any) (any, error) {
	key := path[0]
	selector, isItem := strings.CutPrefix(key, "[")
	if !isItem {
		m, ok := v.(Tree)
		if v != nil && !ok {
			return nil, fmt.Errorf("%q is asked for in something that is not a mapping", key)
		}
		out := Tree{}
		maps.Copy(out, m)
		if len(path) == 1 {
			if value == nil {
				delete(out, key)
			} else {
				out[key] = value
			}
			return out, nil
		}
		next, err := overlaySet(out[key], path[1:], value)
		if err != nil {
			return nil, err
		}
		out[key] = next
		return out, nil
	}
	list, ok := v.([]any)
	if v != nil && !ok {
		return nil, fmt.Errorf("%s is asked for in something that is not a list", key)
	}
	out := slices.Clone(list)
	i, err := itemOf(out, strings.TrimSuffix(selector, "]"))
	if err != nil {
		return nil, err
	}
	if i == len(out) {
		if value == nil {
			return nil, fmt.Errorf("%s: there is no such item to remove", key)
		}
		out = append(out, nil)
		if k, v, ok := strings.Cut(strings.TrimSuffix(selector, "]"), ":"); ok && k != "" && len(path) > 1 {
			out[i] = Tree{k: v}
		}
	}
	if len(path) == 1 {
		if value == nil {
			return slices.Delete(out, i, i+1), nil
		}
		out[i] = value
		return out, nil
	}
	next, err := overlaySet(out[i], path[1:], value)
	if err != nil {
		return nil, err
	}
	out[i] = next
	return out, nil
}

// itemOf finds a list's item: "key:value", ":value" or "value" for text items, an index, or -1 for a new one.
// len(list) means that there is none and one may be added.
func itemOf(list []any, selector string) (int, error) {
	if n, err := strconv.Atoi(selector); err == nil {
		if n == -1 {
			return len(list), nil
		}
		if n < 0 || n >= len(list) {
			return 0, fmt.Errorf("[%d]: the list has %d items", n, len(list))
		}
		return n, nil
	}
	key, want, keyed := strings.Cut(selector, ":")
	for i, e := range list {
		switch e := e.(type) {
		case Tree:
			if keyed && key != "" && fmt.Sprint(e[key]) == want {
				return i, nil
			}
		case string:
			if e == strings.TrimPrefix(selector, ":") {
				return i, nil
			}
		}
	}
	if keyed && key != "" {
		return len(list), nil
	}
	return 0, fmt.Errorf("[%s]: the list has no such item", selector)
}
