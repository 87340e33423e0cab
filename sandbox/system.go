package sandbox

import (
	"embed"
	"fmt"
	"strings"

	kyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/sandbox/api"
)

//go:embed system/*.yaml
var manifests embed.FS

// systemDocuments reads one embedded manifest with its ${...} filled in.
func systemDocuments(file string, values map[string]string) ([]api.Document, error) {
	b, err := manifests.ReadFile("system/" + file)
	if err != nil {
		return nil, err
	}
	text := string(b)
	for k, v := range values {
		text = strings.ReplaceAll(text, "${"+k+"}", v)
	}
	return api.Split("system/"+file, []byte(text)), nil
}

func nodeValues(a addresses) map[string]string {
	var ips []string
	for _, ip := range a.DNS {
		ips = append(ips, `"`+ip.String()+`"`)
	}
	return map[string]string{"DNS": `"` + a.DNS[0].String() + `"`, "DNSIPS": "[" + strings.Join(ips, ", ") + "]"}
}

func meshValues(d Dir, o Options) (map[string]string, error) {
	mesh, err := meshConfig(o.Mesh)
	if err != nil {
		return nil, err
	}
	var args []string
	if o.ProxyImage != "" {
		args = append(args, "--proxy-image="+o.ProxyImage)
	}
	return map[string]string{"STATE": string(d), "MESH": indent(mesh, "    "), "ARGS": list(args, "        ")}, nil
}

func list(items []string, by string) string {
	if len(items) == 0 {
		return by + "# no further settings"
	}
	var b strings.Builder
	for i, it := range items {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s- %q", by, it)
	}
	return b.String()
}

func indent(text, by string) string {
	return by + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+by)
}

// meshConfig writes the YAML of MeshConfig from settings like
// "defaultConfig.holdApplicationUntilProxyStarts=true". Values are YAML: numbers and booleans keep their type.
func meshConfig(settings []string) (string, error) {
	config := map[string]any{
		"rootNamespace": "istio-system",
		"trustDomain":   "cluster.local",
	}
	for _, s := range settings {
		key, text, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return "", fmt.Errorf("--set %s: write KEY=VALUE, for example --set accessLogFile=/dev/stdout", s)
		}
		key = strings.TrimPrefix(key, "meshConfig.")
		var value any
		if err := kyaml.Unmarshal([]byte(text), &value); err != nil {
			return "", fmt.Errorf("--set %s: the value is not YAML: %w", s, err)
		}
		at := config
		steps := strings.Split(key, ".")
		for i, step := range steps[:len(steps)-1] {
			next, ok := at[step].(map[string]any)
			if !ok {
				if at[step] != nil {
					return "", fmt.Errorf("--set %s: %s is a value already", s, strings.Join(steps[:i+1], "."))
				}
				next = map[string]any{}
				at[step] = next
			}
			at = next
		}
		at[steps[len(steps)-1]] = value
	}
	b, err := kyaml.Marshal(config)
	if err != nil {
		return "", err
	}
	_, faults, err := mesh.ParseMeshConfig(string(b))
	if err != nil {
		return "", fmt.Errorf("--set %s: not what MeshConfig has there: %w", strings.Join(settings, ", "), err)
	}
	if len(faults) > 0 {
		return "", fmt.Errorf("--set: %s", strings.ReplaceAll(strings.Join(faults, "; "), "; ignored", ""))
	}
	return string(b), nil
}
