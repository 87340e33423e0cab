//go:build ignore

// This program writes schemas/, the schemas of Istio's kinds, from the CustomResourceDefinitions in the module
// istio.io/api: one file per kind, without descriptions.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"

	"sigs.k8s.io/yaml"
)

func main() {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}} {{.Version}}", "istio.io/api").Output()
	if err != nil {
		log.Fatal(err)
	}
	dir, version, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	text, err := os.ReadFile(filepath.Join(dir, "kubernetes", "customresourcedefinitions.gen.yaml"))
	if err != nil {
		log.Fatal(err)
	}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var crd struct {
			Kind string
			Spec struct {
				Group    string
				Names    struct{ Kind, Plural string }
				Scope    string
				Versions []struct {
					Name               string
					Deprecated         bool
					DeprecationWarning string
					Schema             struct{ OpenAPIV3Schema any }
				}
			}
		}
		if err := yaml.Unmarshal(doc, &crd); err != nil {
			log.Fatal(err)
		}
		if crd.Kind != "CustomResourceDefinition" {
			continue
		}
		kind := map[string]any{"group": crd.Spec.Group, "kind": crd.Spec.Names.Kind, "plural": crd.Spec.Names.Plural, "scope": crd.Spec.Scope}
		var versions []string
		for _, v := range crd.Spec.Versions {
			versions = append(versions, v.Name)
			schema := withoutDescriptions(v.Schema.OpenAPIV3Schema)
			if old := kind["schema"]; old != nil && !reflect.DeepEqual(old, schema) {
				log.Fatalf("%s: the schemas of versions differ; schema.go relies on one schema per kind", crd.Spec.Names.Kind)
			}
			kind["schema"] = schema
		}
		kind["versions"] = versions
		data, err := json.MarshalIndent(kind, "", " ")
		if err != nil {
			log.Fatal(err)
		}
		name := filepath.Join("schemas", strings.ToLower(crd.Spec.Names.Kind)+".json")
		if err := os.WriteFile(name, append(data, '\n'), 0o644); err != nil {
			log.Fatal(err)
		}
		fmt.Println(name)
	}
	if err := os.WriteFile("schemas/VERSION", []byte(version+"\n"), 0o644); err != nil {
		log.Fatal(err)
	}
}

func withoutDescriptions(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if _, text := e.(string); k == "description" && text {
				continue
			}
			out[k] = withoutDescriptions(e)
		}
		return out
	case []any:
		for i, e := range v {
			v[i] = withoutDescriptions(e)
		}
	}
	return v
}
