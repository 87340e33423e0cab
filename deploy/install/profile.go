package install

import (
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy/profiles"
)

// Profile is one line of profile list.
type Profile struct {
	Name  string `json:"name"`
	About string `json:"about"`
}

// Profiles lists them.
func Profiles() []Profile {
	var out []Profile
	for _, n := range profiles.Names() {
		out = append(out, Profile{n, profiles.About(n)})
	}
	return out
}

// Dump is what the input comes to: an IstioOperator file with everything in it. path, if not empty, chooses a part ("components.pilot",
// with or without "spec." in front).
func (w *Wanted) Dump(path string) (any, error) {
	var v any = Tree{"apiVersion": GroupVersion, "kind": Kind, "spec": w.Tree["spec"]}
	if path == "" {
		return v, nil
	}
	steps, err := parsePath(path)
	if err != nil {
		return nil, err
	}
	if steps[0].key != "spec" {
		steps = append([]step{{key: "spec", index: -1}}, steps...)
	}
	for _, s := range steps {
		switch at := v.(type) {
		case Tree:
			next, ok := at[s.key]
			if !ok {
				return nil, fmt.Errorf("there is no %s in %q; there is %s", s, path, strings.Join(sortedKeys(at), ", "))
			}
			v = next
		case []any:
			if s.index < 0 || s.index >= len(at) {
				return nil, fmt.Errorf("%q: the list has %d items", path, len(at))
			}
			v = at[s.index]
		default:
			return nil, fmt.Errorf("%q: %s is asked for in something that has no parts", path, s)
		}
	}
	return v, nil
}

// DumpText is Dump as YAML.
func (w *Wanted) DumpText(path string) (string, error) {
	v, err := w.Dump(path)
	if err != nil {
		return "", err
	}
	text, err := yaml.Marshal(v)
	return string(text), err
}
