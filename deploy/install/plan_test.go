package install

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy/profiles"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got; go test ./deploy/install -update rewrites it):\n%s", path, d)
	}
}

func plan(t *testing.T, in Input) *Plan {
	t.Helper()
	w, err := Resolve(in)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(w)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// releasesText is what a reviewer wants to see: releases with their values.
func releasesText(t *testing.T, p *Plan) string {
	t.Helper()
	var b bytes.Buffer
	for _, w := range p.Warnings {
		fmt.Fprintln(&b, "# warning: "+w)
	}
	for _, r := range p.Releases {
		text, err := yaml.Marshal(r.Values)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "--- # %s: chart %s as %s/%s\n%s", r.Component, r.Chart, r.Namespace, r.Name, text)
	}
	return b.String()
}

func file(t *testing.T, name string) File {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return File{Name: name, Text: text}
}

func TestFilesAndSettingsBecomeHelmReleases(t *testing.T) {
	for name, in := range map[string]Input{
		"default": {},
		"demo":    {Sets: []string{"profile=demo"}},
		"canary":  {Sets: []string{"profile=minimal", "revision=1-20", "values.pilot.env.PILOT_DEBOUNCE_AFTER=1s"}},
		"sets": {Sets: []string{
			"meshConfig.accessLogFile=/dev/stdout", "components.egressGateways[0].enabled=true", "components.ingressGateways[0].enabled=false",
			"components.pilot.k8s.replicaCount=3", "tag=1.10", "values.global.logging.level=default:debug", "components.cni.enabled=false",
			`values.cni.excludeNamespaces={kube-system,monitoring}`,
		}},
		"production": {Files: []File{file(t, "production.yaml")}},
	} {
		t.Run(name, func(t *testing.T) { golden(t, "plan-"+name+".yaml", releasesText(t, plan(t, in))) })
	}
}

func TestEveryProfileIsWhatTheChartsTake(t *testing.T) {
	for _, name := range profiles.Names() {
		if profiles.About(name) == "" {
			t.Errorf("profile %s does not say what it is for", name)
		}
		if _, err := plan(t, Input{Profile: name}).Render(""); err != nil {
			t.Errorf("profile %s: %v", name, err)
		}
	}
}

func TestSettingsWithoutAValueChangeTheObjects(t *testing.T) {
	text, err := plan(t, Input{Files: []File{file(t, "production.yaml")}}).Render("")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := objectsOf(text, "")
	if err != nil {
		t.Fatal(err)
	}
	at := func(kind, name string, path ...string) string {
		t.Helper()
		for _, o := range objects {
			if o.Kind == kind && o.Name == name {
				v, _ := get(o.tree, path...)
				return fmt.Sprint(v)
			}
		}
		t.Fatalf("no %s %s", kind, name)
		return ""
	}
	for _, c := range []struct{ got, want string }{
		{at("Deployment", "istiod", "spec", "strategy", "rollingUpdate", "maxSurge"), "50%"},
		{at("Deployment", "istiod", "metadata", "labels", "team"), "platform"},
		{at("HorizontalPodAutoscaler", "istiod", "spec", "maxReplicas"), "5"},
		{at("HorizontalPodAutoscaler", "istio-ingressgateway", "spec", "minReplicas"), "2"},
		{at("Service", "istio-ingressgateway", "spec", "type"), "NodePort"},
		{at("Deployment", "my-user-gateway", "spec", "replicas"), "3"},
		{at("Deployment", "my-user-gateway", "metadata", "namespace"), "istioinaction"},
		{at("Service", "my-user-gateway", "spec", "selector", "istio"), "my-user-gateway"},
		{at("PodDisruptionBudget", "istio-ingressgateway", "spec", "minAvailable"), "1"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	for _, want := range []string{"--log-format=json", "registry.example.com/mesh/weft:1.2.3", "mode: REGISTRY_ONLY"} {
		if !strings.Contains(text, want) {
			t.Errorf("the manifest has no %q", want)
		}
	}
}

func TestMistakesSayWhereWhatAndWhatToDo(t *testing.T) {
	const head = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n"
	for name, c := range map[string]struct {
		file string
		sets []string
		want []string
	}{
		"misspelt field":       {file: head + "spec:\n  components:\n    piilot:\n      enabled: true\n", want: []string{"mesh.yaml:5", "spec.components.piilot", `"pilot"`}},
		"misspelt k8s field":   {file: head + "spec:\n  components:\n    pilot:\n      k8s:\n        resource:\n          requests: {}\n", want: []string{"mesh.yaml:7", `"resources"`}},
		"addons":               {file: head + "spec:\n  addonComponents:\n    grafana: {enabled: true}\n", want: []string{"mesh.yaml:4", "Kiali"}},
		"other kind":           {file: "apiVersion: v1\nkind: ConfigMap\n", want: []string{"mesh.yaml:2", "kubectl"}},
		"bare Helm values":     {file: "global: {hub: x}\n", want: []string{"spec.values"}},
		"number for a text":    {file: head + "spec:\n  tag: 1.10\n", want: []string{"mesh.yaml:4", "spec.tag", "quotes"}},
		"text for a number":    {file: head + "spec:\n  components:\n    pilot:\n      k8s: {replicaCount: many}\n", want: []string{"whole number"}},
		"not YAML":             {file: "a: [", want: []string{"mesh.yaml"}},
		"ambient":              {sets: []string{"components.ztunnel.enabled=true"}, want: []string{"sidecars"}},
		"values. forgotten":    {sets: []string{"pilot.env.X=1"}, want: []string{"--set pilot.env.X=1", "--set values.pilot"}},
		"no value":             {sets: []string{"profile"}, want: []string{"path=value"}},
		"unknown profile":      {sets: []string{"profile=prod"}, want: []string{`no profile "prod"`, "default, demo"}},
		"revision with a dot":  {sets: []string{"revision=1.20"}, want: []string{`"1-20"`}},
		"unknown mesh setting": {sets: []string{"meshConfig.acessLogFile=/dev/stdout"}, want: []string{"acessLogFile", "--force"}},
		"index too far":        {sets: []string{"components.ingressGateways[7].enabled=true"}, want: []string{"[1]"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{Sets: c.sets}
			if c.file != "" {
				in.Files = []File{{Name: "mesh.yaml", Text: []byte(c.file)}}
			}
			w, err := Resolve(in)
			if err == nil {
				_, err = NewPlan(w)
			}
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestValuesThatNoChartHasAreRefused(t *testing.T) {
	_, err := plan(t, Input{Sets: []string{"values.pilot.autoscaleMinn=3"}}).Render("Pilot")
	if err == nil || !strings.Contains(err.Error(), "autoscaleMinn") {
		t.Fatalf("got %v", err)
	}
}

func TestOverlayPaths(t *testing.T) {
	object := func() any {
		return Tree{"spec": Tree{"args": []any{"--a", "--b"}, "containers": []any{Tree{"name": "x", "image": "i"}}}}
	}
	for path, c := range map[string]struct {
		value any
		want  string
	}{
		"spec.args.[--b]":                   {"--c", `{"spec":{"args":["--a","--c"],"containers":[{"image":"i","name":"x"}]}}`},
		"spec.args.[0]":                     {nil, `{"spec":{"args":["--b"],"containers":[{"image":"i","name":"x"}]}}`},
		"spec.containers.[name:x].image":    {"j", `{"spec":{"args":["--a","--b"],"containers":[{"image":"j","name":"x"}]}}`},
		"spec.containers.[name:y].image":    {"k", `{"spec":{"args":["--a","--b"],"containers":[{"image":"i","name":"x"},{"image":"k","name":"y"}]}}`},
		`metadata.labels.example\.com/team`: {"t", `{"metadata":{"labels":{"example.com/team":"t"}},"spec":{"args":["--a","--b"],"containers":[{"image":"i","name":"x"}]}}`},
	} {
		steps, err := overlayPath(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := overlaySet(object(), steps, c.value)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		text, err := yaml.YAMLToJSON(mustYAML(t, got))
		if err != nil {
			t.Fatal(err)
		}
		if string(text) != c.want {
			t.Errorf("%s:\n got %s\nwant %s", path, text, c.want)
		}
	}
	if _, err := overlaySet(object(), []string{"spec", "args", "[--nope]"}, "x"); err == nil {
		t.Error("an argument that is not there was replaced")
	}
}

func mustYAML(t *testing.T, v any) []byte {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVersionsThatAreTooFarApartAreRefused(t *testing.T) {
	for _, c := range []struct {
		from, to string
		refused  bool
	}{
		{"1.2.0", "1.2.5", false}, {"1.2.5", "1.3.0", false}, {"1.2.5", "1.4.0", true}, {"1.3.0", "1.2.9", true}, {"1.9.0", "2.0.0", true}, {"dev", "1.0.0", false},
	} {
		if got := skew(c.from, c.to); (got != "") != c.refused {
			t.Errorf("%s -> %s: %q", c.from, c.to, got)
		}
	}
}
