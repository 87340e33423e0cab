package show

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/jsonpath"
	kyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/sandbox/store"
)

// Format is a parsed -o value.
type Format struct {
	kind    string // "", "wide", "yaml", "json", "name", "jsonpath", "custom-columns"
	path    *jsonpath.JSONPath
	columns []customColumn
}

// ParseFormat reads kubectl's -o: wide, yaml, json, name, jsonpath=TEMPLATE, custom-columns=TITLE:PATH,...
func ParseFormat(s string) (Format, error) {
	kind, template, _ := strings.Cut(s, "=")
	switch kind {
	case "", "wide", "yaml", "json", "name":
		return Format{kind: kind}, nil
	case "jsonpath", "jsonpath-as-json":
		if template == "" {
			return Format{}, errors.New("-o jsonpath= needs a template, such as -o jsonpath={.status.podIP} for an address")
		}
		if !strings.Contains(template, "{") {
			template = "{" + template + "}"
		}
		p := jsonpath.New("output").AllowMissingKeys(true)
		if err := p.Parse(template); err != nil {
			return Format{}, fmt.Errorf("-o jsonpath=%s: %w", template, err)
		}
		return Format{kind: "jsonpath", path: p}, nil
	case "custom-columns":
		columns, err := parseColumns(template)
		return Format{kind: kind, columns: columns}, err
	}
	return Format{}, fmt.Errorf("-o %s: use wide, yaml, json, name, jsonpath=TEMPLATE or custom-columns=TITLE:PATH", s)
}

// IsTable and Wide say how tables are wanted; other formats go to Print.
func (f Format) IsTable() bool { return f.kind == "" || f.kind == "wide" }
func (f Format) Wide() bool    { return f.kind == "wide" }

// Print writes objects in a format that is none of the tables. single means that the user named one object: it is then not wrapped in a List.
func (f Format) Print(w io.Writer, objects []store.Object, single, noHeaders bool) error {
	if f.kind == "custom-columns" {
		return printColumns(w, f.columns, objects, noHeaders)
	}
	if f.kind == "name" {
		for _, o := range objects {
			k, ok := store.KindFor(o)
			if !ok {
				continue
			}
			fmt.Fprintln(w, k.Printed()+"/"+o.GetName())
		}
		return nil
	}
	var top any
	if single && len(objects) == 1 {
		m, err := plain(objects[0])
		if err != nil {
			return err
		}
		top = m
	} else {
		items := []any{}
		for _, o := range objects {
			m, err := plain(o)
			if err != nil {
				return err
			}
			items = append(items, m)
		}
		top = map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{"resourceVersion": ""}, "items": items}
	}
	switch f.kind {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "    ")
		enc.SetEscapeHTML(false)
		return enc.Encode(top)
	case "jsonpath":
		return f.path.Execute(w, top)
	}
	b, err := kyaml.Marshal(top)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// plain is an object as kubectl shows it: JSON types, no empty creationTimestamps of templates.
func plain(o store.Object) (map[string]any, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	m = runtime.DeepCopyJSON(m)
	dropNulls(m)
	return m, nil
}

func dropNulls(m map[string]any) {
	for k, v := range m {
		switch t := v.(type) {
		case nil:
			delete(m, k)
		case map[string]any:
			dropNulls(t)
		case []any:
			for _, e := range t {
				if em, ok := e.(map[string]any); ok {
					dropNulls(em)
				}
			}
		}
	}
}
