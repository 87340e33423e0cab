package manifest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	kubejson "sigs.k8s.io/json"
)

var typeErrorText = regexp.MustCompile(`cannot unmarshal (\S+) into Go struct field \w+\.(\S+) of type (\S+)`)

// typeError reads the text of Kubernetes' JSON decoder, whose errors have no exported fields.
func typeError(text string) (field, want, got string, ok bool) {
	m := typeErrorText.FindStringSubmatch(text)
	if m == nil {
		return "", "", "", false
	}
	return m[2], m[3], m[1], true
}

// jsonName says what a Go type looks like in a manifest.
func jsonName(goType string) string {
	switch {
	case strings.HasPrefix(goType, "[]"):
		return "list"
	case strings.HasPrefix(goType, "map[") || strings.Contains(goType, "."):
		if strings.HasSuffix(goType, "IntOrString") {
			return "number or string"
		}
		return "mapping"
	case strings.HasPrefix(goType, "int") || strings.HasPrefix(goType, "uint"):
		return "whole number"
	case strings.HasPrefix(goType, "float"):
		return "number"
	case goType == "bool":
		return "boolean"
	case goType == "object":
		return "mapping"
	case goType == "array":
		return "list"
	}
	return goType
}

var strictText = regexp.MustCompile(`^(unknown|duplicate) field "(.*)"$`)

// StrictMessage words an error of strict decoding (sigs.k8s.io/json) into a built-in type: which field, and
// what is wrong with it, with the nearest field that exists.
func StrictMessage(err error, into any) (field, message string) {
	m := strictMistake(err, into)
	return m.field, m.message
}

func strictMistake(err error, into any) mistake {
	m := strictText.FindStringSubmatch(err.Error())
	if m == nil {
		return mistake{message: err.Error()}
	}
	path := m[2]
	if m[1] == "duplicate" {
		return mistake{field: path, message: "this field stands here a second time"}
	}
	t := reflect.TypeOf(into)
	parent, name := "", path
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		parent, name = path[:i], path[i+1:]
	}
	for _, step := range pathStep.FindAllStringSubmatch(parent, -1) {
		t = bare(t)
		switch {
		case t == nil:
		case t.Kind() == reflect.Struct:
			t = fieldsOf(t)[step[1]]
		case t.Kind() == reflect.Slice || t.Kind() == reflect.Map:
			t = t.Elem()
		}
	}
	var known []string
	if t = bare(t); t != nil && t.Kind() == reflect.Struct {
		for k := range fieldsOf(t) {
			known = append(known, k)
		}
	}
	slices.Sort(known)
	return mistake{field: path, message: unknownField(name, known)}
}

func bare(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// fieldsOf maps the JSON names of a struct's fields to their types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case f.Anonymous && name == "" || strings.Contains(options, "inline"):
			if e := bare(f.Type); e.Kind() == reflect.Struct {
				for k, v := range fieldsOf(e) {
					out[k] = v
				}
			}
		case name != "":
			out[name] = f.Type
		}
	}
	return out
}

// strictMeta finds unknown fields in the metadata of a mesh kind, which its schema leaves open.
func strictMeta(object map[string]any) []mistake {
	text, err := json.Marshal(object["metadata"])
	if err != nil {
		return nil
	}
	into := &metav1.ObjectMeta{}
	strict, err := kubejson.UnmarshalStrict(text, into)
	if err != nil {
		m := jsonMistake(err)
		m.field = strings.TrimSuffix("metadata."+m.field, ".")
		return []mistake{m}
	}
	var out []mistake
	for _, e := range strict {
		m := strictMistake(e, into)
		m.field = "metadata." + m.field
		out = append(out, m)
	}
	return out
}

// first shortens Kubernetes' explanation of what a name looks like.
func first(problems []string) string {
	text, _, _ := strings.Cut(problems[0], " (e.g.")
	return text
}

// checkMeta judges what all objects have in common.
func checkMeta(object map[string]any, gvk schema.GroupVersionKind) []mistake {
	meta, ok := object["metadata"].(map[string]any)
	if !ok {
		return []mistake{{field: "metadata", message: "every object needs metadata with a name"}}
	}
	var out []mistake
	name, isString := meta["name"].(string)
	if prefix, _ := meta["generateName"].(string); name == "" && (isString || meta["name"] == nil) && prefix == "" {
		out = append(out, mistake{field: "metadata.name", message: "every object needs a name"})
	} else if meta["name"] != nil && !isString {
		out = append(out, mistake{field: "metadata.name", message: fmt.Sprintf("%v is not a string: put it in quotes", meta["name"])})
	} else if name != "" && gvk.Group != "rbac.authorization.k8s.io" {
		if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
			out = append(out, mistake{field: "metadata.name", message: fmt.Sprintf("%q cannot be a name: %s", name, first(problems))})
		}
	}
	if ns, ok := meta["namespace"].(string); ok && ns != "" {
		if problems := validation.IsDNS1123Label(ns); len(problems) > 0 {
			out = append(out, mistake{field: "metadata.namespace", message: fmt.Sprintf("%q cannot be a namespace: %s", ns, first(problems))})
		}
	}
	for _, f := range []string{"labels", "annotations"} {
		pairs, ok := meta[f].(map[string]any)
		if !ok {
			if meta[f] != nil {
				out = append(out, mistake{field: "metadata." + f, message: "a mapping of strings was expected"})
			}
			continue
		}
		for k, v := range pairs {
			path := fmt.Sprintf("metadata.%s[%s]", f, k)
			s, ok := v.(string)
			if !ok && v != nil {
				out = append(out, mistake{field: path, message: fmt.Sprintf("%v is not a string: put it in quotes", v)})
				continue
			}
			if problems := validation.IsQualifiedName(k); len(problems) > 0 && f == "labels" {
				out = append(out, mistake{field: path, message: "not a label's key: " + first(problems)})
			}
			if problems := validation.IsValidLabelValue(s); len(problems) > 0 && f == "labels" {
				out = append(out, mistake{field: path, message: fmt.Sprintf("%q cannot be a label's value: %s", s, first(problems))})
			}
		}
	}
	return out
}
