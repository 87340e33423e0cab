package templates

import (
	"encoding/json"
	"reflect"
	"strings"
	"sync"
)

// IsScalar: a Go struct that is one value in JSON (Quantity, IntOrString, Time).
func IsScalar(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
}

// Field is one JSON field of a Kubernetes type, with the rules that its struct tags give for merging.
type Field struct {
	Name     string
	Index    []int  // for reflect.Value.FieldByIndex
	Merge    bool   // patchStrategy:"merge": a list is merged and not replaced
	MergeKey string // patchMergeKey: the JSON name that identifies an element; empty for lists of scalars
	Struct   bool   // a struct, or a pointer to one, with fields of its own (see IsScalar)
}

type typeFields struct {
	list   []Field
	byName map[string][]int
}

var fieldCache sync.Map // reflect.Type -> *typeFields

func typeFieldsOf(t reflect.Type) *typeFields {
	if f, ok := fieldCache.Load(t); ok {
		return f.(*typeFields)
	}
	out := &typeFields{byName: map[string][]int{}}
	collect(t, nil, out)
	f, _ := fieldCache.LoadOrStore(t, out)
	return f.(*typeFields)
}

// Fields lists the JSON fields of a Kubernetes struct, those of inlined structs included. The result is shared.
func Fields(t reflect.Type) []Field { return typeFieldsOf(t).list }

// FieldIndex finds a field by its JSON name; nil when there is none.
func FieldIndex(t reflect.Type, name string) []int { return typeFieldsOf(t).byName[name] }

func collect(t reflect.Type, prefix []int, out *typeFields) {
	for i := range t.NumField() {
		f := t.Field(i)
		index := append(prefix[:len(prefix):len(prefix)], i)
		tag := f.Tag.Get("json")
		name, _, _ := strings.Cut(tag, ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if name == "" && f.Anonymous {
			collect(f.Type, index, out)
			continue
		}
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		strategy := strings.Split(f.Tag.Get("patchStrategy"), ",")
		entry := Field{Name: name, Index: index, MergeKey: f.Tag.Get("patchMergeKey"), Struct: inner.Kind() == reflect.Struct && !IsScalar(inner)}
		for _, s := range strategy {
			entry.Merge = entry.Merge || s == "merge"
		}
		out.list = append(out.list, entry)
		out.byName[name] = index
	}
}

// describe names a type in an error.
func describe(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return describe(t.Elem())
	case reflect.Slice:
		return "a list of " + t.Elem().Name()
	case reflect.Map:
		return "a mapping"
	case reflect.Struct:
		return "a " + t.Name()
	}
	return "a " + t.Kind().String()
}
