package install

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy/profiles"
	"github.com/weft-mesh/weft/mesh"
)

// DefaultNamespace of the control plane.
const DefaultNamespace = "istio-system"

// Input is what the user says.
type Input struct {
	Files     []File
	Sets      []string // "path=value", as --set
	Texts     []Text   // as --set-file; win over Sets
	Profile   string   // laid under everything; empty means what Files and Sets say, else "default"
	Revision  string   // as --revision; wins over files
	Namespace string   // as --istioNamespace; wins over files
	Force     bool     // mistakes in values become warnings
	base      Tree     // what was installed before; under Sets
}

// Wanted is the input, merged and checked.
type Wanted struct {
	Tree      Tree // the whole IstioOperator, profile included
	Spec      Spec
	Profile   string
	Namespace string
	Revision  string // empty for the default revision
	Warnings  []string
	named     map[string]bool // gateways that the user's own input names
}

// Resolve merges profile, files and settings, in this order, and checks the result.
func Resolve(in Input) (*Wanted, error) {
	user, said := Tree{}, Tree{} // said is without what was installed before
	if spec, ok := in.base["spec"].(Tree); ok {
		user = Tree{"spec": without(spec, "revision", "namespace")}
	}
	var mistakes []error
	for _, f := range in.Files {
		all, err := readFile(f)
		if err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		for _, w := range all {
			user, said = merge(user, w.tree), merge(said, w.tree)
		}
	}
	profile := in.profile(user)
	base, err := profileTree(profile)
	if err != nil {
		return nil, err
	}
	// Settings come last, over the profile too: the index in components.ingressGateways[0] counts the profile's gateways.
	w := &Wanted{Profile: profile, named: namedGateways(said), Tree: merge(base, user)}
	v, _ := get(said, "spec", "components", "cni", "enabled")
	withoutCNI := v == false
	for _, s := range in.Sets {
		if w.Tree, err = applySet(w.Tree, s); err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		w.nameGateway(s)
		withoutCNI = withoutCNI || strings.TrimPrefix(s, "spec.") == "components.cni.enabled=false"
	}
	for _, x := range in.Texts {
		if w.Tree, err = applyValue(w.Tree, "--set-file "+x.Path, x.Path, func([]step) any { return x.Text }); err != nil {
			mistakes = append(mistakes, err)
		}
	}
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	if withoutCNI {
		w.Warnings = append(w.Warnings, "components.cni.enabled=false has no effect while the control plane is installed: pods of this mesh have no init container, "+
			"so without the node agent every meshed pod would wait for its redirection for ever")
	}
	put(w.Tree, profile, "spec", "profile")
	if in.Revision != "" {
		put(w.Tree, in.Revision, "spec", "revision")
	}
	if errs := checkTree(w.Tree, "settings", nil); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if err := decodeTree(w.Tree, &w.Spec); err != nil {
		return nil, err
	}
	if err := w.settle(in); err != nil {
		return nil, err
	}
	return w, nil
}

// profile is what the user chose: a setting before a file.
func (in Input) profile(user Tree) string {
	profile := in.Profile
	for _, s := range in.Sets {
		if v, ok := strings.CutPrefix(strings.TrimPrefix(s, "spec."), "profile="); ok && in.Profile == "" {
			profile = unquote(v)
		}
	}
	if profile == "" {
		v, _ := get(user, "spec", "profile")
		profile, _ = v.(string)
	}
	return cmp.Or(profile, "default")
}

// nameGateway notes which gateway a setting is about.
func (w *Wanted) nameGateway(setting string) {
	path, _, _ := strings.Cut(setting, "=")
	steps, err := parsePath(strings.TrimPrefix(path, "spec."))
	if err != nil || len(steps) < 3 || steps[0].key != "components" {
		return
	}
	if steps[2].name != "" {
		w.named[steps[2].name] = true
		return
	}
	list, _ := get(w.Tree, "spec", "components", steps[1].key)
	items, _ := list.([]any)
	if i := steps[2].index; i >= 0 && i < len(items) {
		name, _ := asTree(items[i])["name"].(string)
		w.named[name] = true
	}
}

// settle decides namespace and revision, which can be said in several places.
func (w *Wanted) settle(in Input) error {
	text := func(path ...string) string {
		v, _ := get(w.Tree, path...)
		s, _ := v.(string)
		return s
	}
	w.Namespace = cmp.Or(in.Namespace, w.Spec.Namespace, text("spec", "values", "global", "istioNamespace"), text("metadata", "namespace"), DefaultNamespace)
	w.Revision = cmp.Or(w.Spec.Revision, text("spec", "values", "revision"))
	if w.Revision == "default" {
		w.Revision = ""
	}
	if err := checkRevision(w.Revision); err != nil {
		return err
	}
	put(w.Tree, w.Namespace, "spec", "namespace")
	w.Spec.Namespace = w.Namespace
	for _, c := range []struct {
		name string
		Component
	}{{"ztunnel", w.Spec.Components.Ztunnel}, {"istiodRemote", w.Spec.Components.IstiodRemote}} {
		if on(c.Enabled) {
			return fmt.Errorf("components.%s is enabled: weft has no such component (its data plane is sidecars; a control plane serves one cluster); remove it", c.name)
		}
	}
	for _, c := range []struct {
		name string
		Component
	}{{"pilot", w.Spec.Components.Pilot}, {"cni", w.Spec.Components.CNI}, {"base", w.Spec.Components.Base}} {
		if c.Namespace != "" && c.Namespace != w.Namespace {
			return fmt.Errorf("components.%s.namespace is %q: the control plane is in one namespace, %q (spec.namespace, or --istioNamespace)", c.name, c.Namespace, w.Namespace)
		}
	}
	return w.checkMeshConfig(in.Force)
}

// checkMeshConfig finds fields that no MeshConfig has.
func (w *Wanted) checkMeshConfig(force bool) error {
	config := w.Spec.MeshConfig
	if v, ok := w.Spec.Values["meshConfig"].(Tree); ok {
		config = merge(v, config)
	}
	if len(config) == 0 {
		return nil
	}
	text, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	_, warnings, err := mesh.ParseMeshConfig(string(text))
	if err != nil {
		return fmt.Errorf("spec.meshConfig: %w", err)
	}
	for _, m := range warnings {
		if unknown, ok := strings.CutSuffix(m, "; ignored"); ok && !force {
			return fmt.Errorf("spec.meshConfig.%s: correct it, or install it all the same with --force", unknown)
		}
		w.Warnings = append(w.Warnings, "meshConfig: "+m)
	}
	return nil
}

// checkRevision: a revision becomes part of names and of label values.
func checkRevision(r string) error {
	bad := strings.ContainsFunc(r, func(c rune) bool { return !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') })
	if bad || strings.HasPrefix(r, "-") || strings.HasSuffix(r, "-") || len(r) > 56 {
		hint := ""
		if dashed := strings.ReplaceAll(strings.ToLower(r), ".", "-"); strings.Contains(r, ".") && checkRevision(dashed) == nil {
			hint = fmt.Sprintf(", for example %q", dashed)
		}
		return fmt.Errorf("revision %q: want lower-case letters, digits and dashes, at most 56, beginning and ending with a letter or digit%s", r, hint)
	}
	return nil
}

// applySet lays one "path=value" over a tree.
func applySet(t Tree, setting string) (Tree, error) {
	path, value, ok := strings.Cut(setting, "=")
	if !ok {
		return t, &Mistake{Source: "--set " + setting, Message: "want path=value, like meshConfig.accessLogFile=/dev/stdout"}
	}
	return applyValue(t, "--set "+setting, path, func(steps []step) any { return parseValue(steps, value) })
}

// Text is a setting whose value is a text as it stands.
type Text struct{ Path, Text string }

// SetFile reads what --set-file names: "path=file".
func SetFile(setting string) (Text, error) {
	path, name, ok := strings.Cut(setting, "=")
	if !ok {
		return Text{}, &Mistake{Source: "--set-file " + setting, Message: "want path=FILE"}
	}
	text, err := os.ReadFile(name)
	return Text{Path: path, Text: string(text)}, err
}

// SetCompletions are paths that people often set.
func SetCompletions() []string {
	out := []string{
		"revision=", "hub=", "tag=", "meshConfig.accessLogFile=/dev/stdout", "meshConfig.accessLogEncoding=JSON", "meshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY",
		"values.pilot.env.", "values.global.proxy.resources.", "values.global.logging.level=", "components.ingressGateways[0].enabled=", "components.egressGateways[0].enabled=",
	}
	for _, p := range profiles.Names() {
		out = append(out, "profile="+p)
	}
	return out
}

// applyValue lays the value at one path over a tree.
func applyValue(t Tree, source, path string, value func([]step) any) (Tree, error) {
	steps, err := parsePath(path)
	if err != nil {
		return t, &Mistake{Source: source, Message: err.Error()}
	}
	if steps[0].key != "spec" {
		steps = append([]step{{key: "spec", index: -1}}, steps...)
	}
	v := value(steps)
	out, err := set(t, steps, v)
	if err != nil {
		return t, &Mistake{Source: source, Message: err.Error()}
	}
	// Only this setting is looked at, so that what it says about a field is not blamed on a file.
	alone, err := set(nil, zeroed(steps), v)
	if err != nil {
		return t, &Mistake{Source: source, Message: err.Error()}
	}
	if errs := checkTree(alone.(Tree), source, nil); len(errs) > 0 {
		for _, e := range errs {
			if m := new(Mistake); errors.As(e, &m) && strings.Contains(m.Message, "unknown field") && len(steps) > 1 {
				m.Message += topLevelHint(steps[1].key)
			}
		}
		return t, errors.Join(errs...)
	}
	return out.(Tree), nil
}

// topLevelHint helps who forgets the "values." that istioctl wants and Helm does not.
func topLevelHint(key string) string {
	if slices.Contains([]string{"global", "pilot", "gateways", "cni", "sidecarInjectorWebhook", "telemetry", "istiod"}, key) {
		return fmt.Sprintf("; Helm values go below values: --set values.%s...", key)
	}
	return ""
}

// zeroed makes every index 0, for a tree in which the setting stands alone.
func zeroed(steps []step) []step {
	out := slices.Clone(steps)
	for i := range out {
		if out[i].index > 0 {
			out[i].index = 0
		}
	}
	return out
}

// profileTree is a profile over "default".
func profileTree(name string) (Tree, error) {
	read := func(name string) (Tree, error) {
		text, err := profiles.Read(name)
		if err != nil {
			return nil, err
		}
		all, err := readFile(File{Name: "profile " + name, Text: text})
		if err != nil {
			return nil, err
		}
		return all[0].tree, nil
	}
	base, err := read("default")
	if err != nil || name == "default" {
		return base, err
	}
	over, err := read(name)
	if err != nil {
		return nil, err
	}
	return merge(base, over), nil
}

func namedGateways(user Tree) map[string]bool {
	out := map[string]bool{}
	for _, list := range []string{"ingressGateways", "egressGateways"} {
		v, _ := get(user, "spec", "components", list)
		items, _ := v.([]any)
		for _, it := range items {
			if t, ok := it.(Tree); ok {
				name, _ := t["name"].(string)
				out[name] = true
			}
		}
	}
	return out
}

func decodeTree(t Tree, spec *Spec) error {
	text, err := json.Marshal(t["spec"])
	if err != nil {
		return err
	}
	return json.Unmarshal(text, spec)
}
