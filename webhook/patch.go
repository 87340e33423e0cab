package webhook

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/templates"
)

// A JSON patch (RFC 6902) is made from the typed pods, before and after, and touches only what differs. Fields that this
// program's version of the Kubernetes API does not know are therefore never dropped from the user's pod, which is what happens
// when the whole object is decoded, changed and compared as JSON.

// patchWriter appends operations to one JSON array.
type patchWriter struct {
	out []byte
	err error
}

// podPatch returns the patch that turns before into after, or nil when they are equal. Only metadata and spec are looked at.
func podPatch(before, after *corev1.Pod) ([]byte, error) {
	w := patchWriter{out: make([]byte, 0, 24<<10)}
	from, to := reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem()
	for _, f := range templates.Fields(from.Type()) {
		if f.Name == "metadata" || f.Name == "spec" {
			w.value("/"+f.Name, from.FieldByIndex(f.Index), to.FieldByIndex(f.Index), f)
		}
	}
	if w.err != nil {
		return nil, fmt.Errorf("patch: %w", w.err)
	}
	if len(w.out) == 0 {
		return nil, nil
	}
	return append(w.out, ']'), nil
}

func (w *patchWriter) op(op, path string, value reflect.Value) {
	w.out = append(w.out, separator(w.out)...)
	w.out = append(w.out, `{"op":"`...)
	w.out = append(w.out, op...)
	w.out = append(w.out, `","path":`...)
	w.out = w.json(w.out, path)
	if value.IsValid() {
		w.out = append(w.out, `,"value":`...)
		w.out = w.json(w.out, value.Interface())
	}
	w.out = append(w.out, '}')
}

func (w *patchWriter) json(to []byte, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil && w.err == nil {
		w.err = err
	}
	return append(to, b...)
}

// value compares one field. A zero value is taken as absent: adding it where the JSON has an explicit null or "" replaces
// that, as RFC 6902 says of "add".
func (w *patchWriter) value(path string, from, to reflect.Value, f templates.Field) {
	switch {
	case from.IsZero():
		if !to.IsZero() {
			w.op("add", path, to)
		}
		return
	case to.IsZero():
		w.op("remove", path, reflect.Value{})
		return
	}
	switch kind := from.Kind(); {
	case f.Struct && kind == reflect.Pointer:
		w.structure(path, from.Elem(), to.Elem())
	case f.Struct:
		w.structure(path, from, to)
	case kind == reflect.Map:
		w.mapping(path, from, to)
	case kind == reflect.Slice && f.Merge && f.MergeKey != "":
		w.list(path, from, to, f)
	case kind == reflect.String:
		if from.String() != to.String() {
			w.op("replace", path, to)
		}
	default:
		if !reflect.DeepEqual(from.Interface(), to.Interface()) {
			w.op("replace", path, to)
		}
	}
}

func (w *patchWriter) structure(path string, from, to reflect.Value) {
	for _, f := range templates.Fields(from.Type()) {
		a, b := from.FieldByIndex(f.Index), to.FieldByIndex(f.Index)
		if !a.IsZero() || !b.IsZero() {
			w.value(path+"/"+f.Name, a, b, f)
		}
	}
}

func (w *patchWriter) mapping(path string, from, to reflect.Value) {
	keys := make([]string, 0, to.Len())
	for it := to.MapRange(); it.Next(); {
		keys = append(keys, it.Key().String())
	}
	for it := from.MapRange(); it.Next(); {
		if !to.MapIndex(it.Key()).IsValid() {
			keys = append(keys, it.Key().String())
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		key := reflect.ValueOf(k).Convert(from.Type().Key())
		a, b := from.MapIndex(key), to.MapIndex(key)
		at := path + "/" + pointerEscape.Replace(k)
		switch {
		case !a.IsValid():
			w.op("add", at, b)
		case !b.IsValid():
			w.op("remove", at, reflect.Value{})
		case !reflect.DeepEqual(a.Interface(), b.Interface()):
			w.op("replace", at, b)
		}
	}
}

// RFC 6901.
var pointerEscape = strings.NewReplacer("~", "~0", "/", "~1")

// list compares lists whose elements have a key: removes, then inserts and moves, then changes inside elements.
func (w *patchWriter) list(path string, from, to reflect.Value, f templates.Field) {
	key := templates.FieldIndex(from.Type().Elem(), f.MergeKey)
	// have[i] is the index in from of what stands at i while the patch is applied.
	have := make([]int, from.Len())
	for i := range have {
		have[i] = i
	}
	same := func(i, j int) bool { return from.Index(i).FieldByIndex(key).Equal(to.Index(j).FieldByIndex(key)) }
	if duplicates(from, key) || duplicates(to, key) {
		if !reflect.DeepEqual(from.Interface(), to.Interface()) {
			w.op("replace", path, to)
		}
		return
	}
	item := func(i int) string { return path + "/" + strconv.Itoa(i) }
	for i := len(have) - 1; i >= 0; i-- {
		if !slices.ContainsFunc(indices(to.Len()), func(j int) bool { return same(i, j) }) {
			w.op("remove", item(i), reflect.Value{})
			have = slices.Delete(have, i, i+1)
		}
	}
	for j := range to.Len() {
		at := slices.IndexFunc(have, func(i int) bool { return i >= 0 && same(i, j) })
		switch {
		case at == j:
		case at < 0:
			w.op("add", item(j), to.Index(j))
			have = slices.Insert(have, j, -1)
			continue
		default:
			// Everything before j is in place, so it stands further back.
			w.out = append(w.out, separator(w.out)...)
			w.out = append(w.out, `{"op":"move","from":`...)
			w.out = w.json(w.out, item(at))
			w.out = append(w.out, `,"path":`...)
			w.out = w.json(w.out, item(j))
			w.out = append(w.out, '}')
			i := have[at]
			have = slices.Insert(slices.Delete(have, at, at+1), j, i)
		}
		w.structure(item(j), from.Index(have[j]), to.Index(j))
	}
}

func separator(out []byte) string {
	if len(out) == 0 {
		return "["
	}
	return ","
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func duplicates(list reflect.Value, key []int) bool {
	for i := range list.Len() {
		for j := range i {
			if list.Index(i).FieldByIndex(key).Equal(list.Index(j).FieldByIndex(key)) {
				return true
			}
		}
	}
	return false
}
