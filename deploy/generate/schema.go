package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy"
)

// values are what a chart says about its values.
type values struct {
	defaults map[string]any // values.yaml
	idle     []string       // the names in files/without-effect.yaml: "pilot.traceSampling"
}

func read(chart string) (*values, error) {
	v := new(values)
	text, err := deploy.Charts.ReadFile(chart + "/values.yaml")
	if err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalStrict(text, &v.defaults); err != nil {
		return nil, fmt.Errorf("values.yaml: %w", err)
	}
	if text, err = deploy.Charts.ReadFile(chart + "/files/without-effect.yaml"); err != nil {
		return nil, err
	}
	var idle map[string]string
	if err := yaml.UnmarshalStrict(text, &idle); err != nil {
		return nil, fmt.Errorf("files/without-effect.yaml: %w", err)
	}
	v.idle = slices.Sorted(maps.Keys(idle))
	return v, nil
}

// open are values whose fields are Kubernetes' or Istio's to define, though there are defaults.
var open = []string{"meshConfig", "resources", "seccompProfile", "podAnnotations"}

// flat are the groups of values that may also stand at the top level.
var flat = map[string]string{deploy.Istiod: "pilot", deploy.CNI: "cni"}

// choices are the values of which there are few.
var choices = map[string][]any{
	"kind":               {"Deployment", "DaemonSet"},
	"service.type":       {"LoadBalancer", "NodePort", "ClusterIP", "ExternalName", "None"},
	"imagePullPolicy":    {"", "Always", "IfNotPresent", "Never"},
	"pullPolicy":         {"", "Always", "IfNotPresent", "Never"},
	"reinvocationPolicy": {"Never", "IfNeeded"},
	"proxy.autoInject":   {"enabled", "disabled"},
	"proxy.startGate":    {"auto", "hook", "probe"},
	"proxy.tracer":       {"none", "zipkin", "lightstep", "datadog"},
	"global.platform":    {"", "gke", "k3s", "k3d", "rke2", "microk8s", "minikube", "openshift", "talos"},
}

// name is what a revision must look like: it becomes part of a Service's name.
const name = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"

type object = map[string]any

// schema writes the JSON schema of one chart. An unknown name is an error wherever the chart knows all names. What the other
// charts have at their top level is accepted, so that one file of values serves all charts.
func schema(chart string, charts map[string]*values) ([]byte, error) {
	own := charts[chart]
	top := of("", own.defaults)
	properties := top["properties"].(object)
	if group, ok := properties[flat[chart]].(object); ok {
		for field, s := range group["properties"].(object) {
			if _, taken := properties[field]; !taken {
				properties[field] = s
			}
		}
	}
	for _, path := range own.idle {
		if err := accept(top, path); err != nil {
			return nil, err
		}
	}
	global := of("global", map[string]any{})
	global["additionalProperties"], global["properties"] = false, object{}
	for _, other := range deploy.Names {
		for field, s := range of("global", charts[other].defaults["global"].(map[string]any))["properties"].(object) {
			global["properties"].(object)[field] = s
		}
		for _, path := range charts[other].idle {
			if rest, ok := strings.CutPrefix(path, "global."); ok {
				if err := accept(global, rest); err != nil {
					return nil, err
				}
			}
		}
		if other == deploy.Gateway {
			continue // its names are so general that a mistake would pass
		}
		for field := range charts[other].defaults {
			if _, taken := properties[field]; !taken {
				properties[field] = object{}
			}
		}
		for _, path := range charts[other].idle {
			field, _, _ := strings.Cut(path, ".")
			if _, taken := properties[field]; !taken {
				properties[field] = object{}
			}
		}
	}
	properties["global"] = global
	top["$schema"] = "http://json-schema.org/draft-07/schema#"
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(top)
	return b.Bytes(), err
}

// accept lets a name pass that has no default.
func accept(s object, path string) error {
	field, rest, deeper := strings.Cut(path, ".")
	properties, ok := s["properties"].(object)
	if !ok {
		return fmt.Errorf("files/without-effect.yaml: %s stands below a value that is open", path)
	}
	if !deeper {
		if _, taken := properties[field]; taken {
			return fmt.Errorf("files/without-effect.yaml: %s has a default in values.yaml", path)
		}
		properties[field] = object{}
		return nil
	}
	next, ok := properties[field].(object)
	if !ok {
		return fmt.Errorf("files/without-effect.yaml: %s: there is no %s in values.yaml", path, field)
	}
	return accept(next, rest)
}

// of is the schema of a value with a default.
func of(path string, v any) object {
	last := path[strings.LastIndexByte(path, '.')+1:]
	for suffix, all := range choices {
		if path == suffix || strings.HasSuffix(path, "."+suffix) {
			return object{"enum": all}
		}
	}
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 || slices.Contains(open, last) {
			return object{"type": []any{"object", "null"}}
		}
		properties := object{}
		for field, value := range v {
			properties[field] = of(strings.TrimPrefix(path+"."+field, "."), value)
		}
		return object{"type": "object", "additionalProperties": false, "properties": properties}
	case []any:
		s := object{"type": []any{"array", "null"}}
		if len(v) > 0 {
			if item, ok := v[0].(string); ok {
				s["items"] = of("", item)
			}
		}
		return s
	case bool:
		return object{"type": "boolean"}
	case float64:
		return object{"type": "integer", "minimum": 0}
	}
	switch last {
	case "revision", "defaultRevision":
		return object{"type": "string", "pattern": name}
	}
	// Command lines make numbers of 1 and 8080.
	return object{"type": []any{"string", "number"}}
}
