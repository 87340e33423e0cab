package install

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// Tree is a mapping as encoding/json gives it: map[string]any, []any, string, int64, float64, bool, nil.
type Tree = map[string]any

// namedLists are the lists whose items are told apart by their name, so that a file can change one item of a profile's list.
// All other lists are replaced as a whole.
var namedLists = []string{"ingressGateways", "egressGateways", "env", "extensionProviders"}

// merge lays over on base and returns the result; neither is changed. Null takes a key away, as in Helm's values.
func merge(base, over Tree) Tree {
	out := make(Tree, len(base)+len(over))
	for k, v := range base {
		out[k] = v
	}
	for k, v := range over {
		was := out[k]
		switch v := v.(type) {
		case nil:
			delete(out, k)
			continue
		case Tree:
			if b, ok := was.(Tree); ok {
				out[k] = merge(b, v)
				continue
			}
			out[k] = merge(nil, v)
			continue
		case []any:
			if b, ok := was.([]any); ok && slices.Contains(namedLists, k) {
				out[k] = mergeNamed(b, v)
				continue
			}
		}
		out[k] = v
	}
	return out
}

func mergeNamed(base, over []any) []any {
	out := slices.Clone(base)
	for _, v := range over {
		item, _ := v.(Tree)
		name, _ := item["name"].(string)
		i := slices.IndexFunc(out, func(o any) bool {
			t, _ := o.(Tree)
			return name != "" && t["name"] == name
		})
		if i < 0 {
			out = append(out, v)
			continue
		}
		out[i] = merge(out[i].(Tree), item)
	}
	return out
}

// get finds the value at a path of keys.
func get(t Tree, path ...string) (any, bool) {
	var v any = t
	for _, k := range path {
		m, ok := v.(Tree)
		if !ok {
			return nil, false
		}
		if v, ok = m[k]; !ok {
			return nil, false
		}
	}
	return v, true
}

// put sets the value at a path of keys, making the mappings on the way. It must not cross a value that is none.
func put(t Tree, value any, path ...string) {
	for _, k := range path[:len(path)-1] {
		next, ok := t[k].(Tree)
		if !ok {
			next = Tree{}
			t[k] = next
		}
		t = next
	}
	t[path[len(path)-1]] = value
}

// clone copies mappings and lists.
func clone(v any) any {
	switch v := v.(type) {
	case Tree:
		out := make(Tree, len(v))
		for k, e := range v {
			out[k] = clone(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = clone(e)
		}
		return out
	}
	return v
}

// step of a path in --set: a key, or an index, or the name of a list's item.
type step struct {
	key   string
	index int    // -1 when it is none
	name  string // "[name:x]"
}

func (s step) String() string {
	switch {
	case s.name != "":
		return "[name:" + s.name + "]"
	case s.index >= 0:
		return fmt.Sprintf("[%d]", s.index)
	}
	return s.key
}

// parsePath reads the path of --set, as istioctl: keys with dots between them, "\." for a dot in a key,
// "[0]" for an item of a list, "[name:x]" for the item with that name.
func parsePath(text string) ([]step, error) {
	var out []step
	var key strings.Builder
	flush := func() error {
		if key.Len() == 0 {
			return fmt.Errorf("%q: an empty key in the path", text)
		}
		out = append(out, step{key: key.String(), index: -1})
		key.Reset()
		return nil
	}
	closed := false // the last thing was a "]"
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text):
			i++
			key.WriteByte(text[i])
			closed = false
		case c == '.':
			if !closed {
				if err := flush(); err != nil {
					return nil, err
				}
			}
			closed = false
		case c == '[':
			end := strings.IndexByte(text[i:], ']')
			if end < 0 {
				return nil, fmt.Errorf("%q: \"[\" without \"]\"", text)
			}
			afterDot := key.Len() == 0 && i > 0 && text[i-1] == '.' // overlays write "containers.[name:x]"
			if !closed && !afterDot {
				if err := flush(); err != nil {
					return nil, err
				}
			}
			inside := text[i+1 : i+end]
			if name, ok := strings.CutPrefix(inside, "name:"); ok && name != "" {
				out = append(out, step{index: -1, name: name})
			} else if n, err := strconv.Atoi(inside); err == nil && n >= 0 && n < 1000 {
				out = append(out, step{index: n})
			} else {
				return nil, fmt.Errorf("%q: %q is not a list's index: write [0] or [name:NAME]", text, inside)
			}
			i += end
			closed = true
		default:
			if closed {
				return nil, fmt.Errorf("%q: a dot is missing after \"]\"", text)
			}
			key.WriteByte(c)
		}
	}
	if closed {
		return out, nil
	}
	return out, flush()
}

// texts are the fields whose value is a string whatever it looks like: --set tag=1.10 is not a number.
var texts = []string{"tag", "hub", "revision", "name", "namespace", "clusterName", "network", "meshID", "image", "value", "trustDomain", "level", "logLevel", "version"}

// textMaps are the mappings whose values are strings.
var textMaps = []string{"proxyMetadata", "env", "podAnnotations", "podLabels", "serviceAnnotations", "annotations", "labels", "label", "nodeSelector"}

// parseValue reads the value of --set as YAML does: true, 3 and [a, b] are what they look like; "{a,b}" is Helm's way to write a list.
func parseValue(path []step, text string) any {
	last := path[len(path)-1]
	if slices.Contains(texts, last.key) {
		return unquote(text)
	}
	if len(path) > 1 && last.key != "" && slices.Contains(textMaps, path[len(path)-2].key) {
		return unquote(text)
	}
	if inner, ok := strings.CutPrefix(text, "{"); ok && strings.HasSuffix(inner, "}") && !strings.Contains(inner, ":") {
		text = "[" + strings.TrimSuffix(inner, "}") + "]"
	}
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil || v == nil && text != "null" {
		return text
	}
	switch v := plain(v).(type) {
	case string, bool, int64, float64, []any, Tree, nil:
		return v
	}
	return text // a date
}

func unquote(text string) string {
	if len(text) >= 2 && (text[0] == '"' || text[0] == '\'') && text[len(text)-1] == text[0] {
		return text[1 : len(text)-1]
	}
	return text
}

// plain turns YAML's integers into JSON's.
func plain(v any) any {
	switch v := v.(type) {
	case int:
		return int64(v)
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
	}
	return v
}

// set puts value at path below v, which may be nil, and returns the new v.
func set(v any, path []step, value any) (any, error) {
	if len(path) == 0 {
		return value, nil
	}
	s := path[0]
	if s.key != "" {
		m, ok := v.(Tree)
		if v != nil && !ok {
			return nil, fmt.Errorf("%s is asked for in something that is not a mapping", s)
		}
		out := make(Tree, len(m)+1)
		for k, e := range m {
			out[k] = e
		}
		next, err := set(m[s.key], path[1:], value)
		if err != nil {
			return nil, err
		}
		out[s.key] = next
		return out, nil
	}
	list, ok := v.([]any)
	if v != nil && !ok {
		return nil, fmt.Errorf("%s is asked for in something that is not a list", s)
	}
	i := s.index
	if s.name != "" {
		i = slices.IndexFunc(list, func(e any) bool { t, _ := e.(Tree); return t["name"] == s.name })
		if i < 0 {
			i = len(list)
		}
	}
	if i > len(list) {
		return nil, fmt.Errorf("%s: the list has %d items, so the next is [%d]", s, len(list), len(list))
	}
	out := slices.Clone(list)
	if i == len(out) {
		out = append(out, nil)
		if s.name != "" {
			out[i] = Tree{"name": s.name}
		}
	}
	next, err := set(out[i], path[1:], value)
	if err != nil {
		return nil, err
	}
	out[i] = next
	return out, nil
}

func sortedKeys(t Tree) []string { return slices.Sorted(maps.Keys(t)) }
