package manifest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	networkingv1beta1 "istio.io/client-go/pkg/apis/networking/v1beta1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-mesh/weft/mesh"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

func decode1(t *testing.T, text string) mesh.Object {
	t.Helper()
	objects, _, err := Decode(strings.NewReader(text), "in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 1 {
		t.Fatalf("%d objects", len(objects))
	}
	return objects[0]
}

// Each file of testdata/mistakes has a golden with what the user is told about it.
func TestMistakesAreToldWithLineFieldAndRemedy(t *testing.T) {
	files, err := filepath.Glob("testdata/mistakes/*[nl]")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, in := range files {
		t.Run(filepath.Base(in), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			objects, warnings, err := Decode(strings.NewReader(string(text)), filepath.Base(in))
			if err != nil && objects != nil {
				t.Errorf("%d objects beside an error: half-applied", len(objects))
			}
			var b strings.Builder
			if err != nil {
				fmt.Fprintln(&b, err)
			}
			for _, w := range warnings {
				fmt.Fprintln(&b, "warning:", w)
			}
			golden := in + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("told:\n%s\nwant:\n%s", b.String(), want)
			}
		})
	}
}

func TestErrorsCanBeTakenApart(t *testing.T) {
	_, _, err := Decode(strings.NewReader("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: x}\nspec:\n  clusterIp: None\n"), "f.yaml")
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is not an Error", err)
	}
	want := Error{File: "f.yaml", Line: 5, Object: mesh.Key{Kind: "Service", Namespace: "x", Name: "a"}, Field: "spec.clusterIp", Message: `unknown field; did you mean "clusterIP"?`}
	if *e != want {
		t.Errorf("got %+v\nwant %+v", *e, want)
	}
}

func TestEveryVersionOfTheAPIIsRead(t *testing.T) {
	for version, ok := range map[string]func(mesh.Object) bool{
		"v1":       func(o mesh.Object) bool { _, ok := o.Object.(*networkingv1.VirtualService); return ok },
		"v1beta1":  func(o mesh.Object) bool { _, ok := o.Object.(*networkingv1beta1.VirtualService); return ok },
		"v1alpha3": func(o mesh.Object) bool { _, ok := o.Object.(*networkingv1alpha3.VirtualService); return ok },
	} {
		o := decode1(t, "apiVersion: networking.istio.io/"+version+"\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [a], http: [{route: [{destination: {host: a}}]}]}")
		if !ok(o) {
			t.Errorf("%s gives %T", version, o.Object)
		}
		if gvk := o.GetObjectKind().GroupVersionKind(); gvk.Version != version || gvk.Kind != "VirtualService" {
			t.Errorf("%s says it is %s", version, gvk)
		}
	}
}

func TestListsJSONAndStreamsGiveTheirObjects(t *testing.T) {
	text := `# a comment before everything
%YAML 1.1
---
# an empty document

---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: d}
  spec: {replicas: 2, selector: {}, template: {}}
- {apiVersion: v1, kind: Namespace, metadata: {name: n}}
---
{"apiVersion": "v1", "kind": "ServiceList", "items": [
	{"metadata": {"name": "s", "annotations": {"a": "\ud83d\ude00 \/"}}}]}
--- # with a comment
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data:
  file: |
    x
    --not a separator
...
`
	objects, warnings, err := Decode(strings.NewReader(text), "in.yaml")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	var got []string
	for _, o := range objects {
		key, _ := keyOf(o.Object)
		got = append(got, fmt.Sprintf("%s:%d", key, o.Line))
	}
	want := "Deployment d:10 Namespace n:14 Service s:17 ConfigMap c:19"
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
	if d := objects[0].Object.(*appsv1.Deployment); *d.Spec.Replicas != 2 {
		t.Errorf("replicas %d", *d.Spec.Replicas)
	}
	if s := objects[2].Object.(*corev1.Service); s.Annotations["a"] != "😀 /" {
		t.Errorf("annotation %q", s.Annotations["a"])
	}
	SetNamespace(objects, "prod")
	if ns := objects[0].Object.(*appsv1.Deployment).Namespace; ns != "prod" {
		t.Errorf("the deployment is in %q", ns)
	}
	if ns := objects[1].Object.(*corev1.Namespace).Namespace; ns != "" {
		t.Errorf("the namespace is in %q", ns)
	}
}

func TestANullWorkloadSelectorMeansAll(t *testing.T) {
	o := decode1(t, `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: log}
spec:
  workloadSelector:
    # only a comment
  configPatches:
  - applyTo: NETWORK_FILTER
    match: {context: ANY}
    patch: {operation: MERGE, value: {typed_config: {"@type": x, anything: 1}}}
`)
	if s := o.Object.(*networkingv1alpha3.EnvoyFilter).Spec.WorkloadSelector; s != nil {
		t.Errorf("selector %v", s)
	}
}

func TestWholeNumbersMayBeWrittenWithAPoint(t *testing.T) {
	o := decode1(t, "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [a], http: [{fault: {abort: {httpStatus: 555.0, percentage: {value: 20}}}, route: [{destination: {host: a}, weight: 100.0}]}]}")
	r := o.Object.(*networkingv1.VirtualService).Spec.Http[0]
	if r.Fault.Abort.GetHttpStatus() != 555 || r.Fault.Abort.Percentage.Value != 20 || r.Route[0].Weight != 100 {
		t.Errorf("got %v", r)
	}
}

func TestOtherPeoplesKindsAreKeptWithAWarning(t *testing.T) {
	objects, warnings, err := Decode(strings.NewReader("apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: a}\nspec: {x: 1}"), "")
	if err != nil || len(warnings) != 1 {
		t.Fatal(err, warnings)
	}
	if _, ok := objects[0].Object.(*unstructured.Unstructured); !ok {
		t.Errorf("%T", objects[0].Object)
	}
}

func TestAnchorsAndMergeKeysAreExpanded(t *testing.T) {
	o := decode1(t, `apiVersion: v1
kind: ConfigMap
metadata: {name: a, labels: &l {app: a, tier: web}, annotations: {<<: *l, tier: db}}
data: *l
`)
	c := o.Object.(*corev1.ConfigMap)
	if c.Annotations["app"] != "a" || c.Annotations["tier"] != "db" || c.Data["tier"] != "web" {
		t.Errorf("got %v %v", c.Annotations, c.Data)
	}
}

func TestAliasBombsEndAtOnce(t *testing.T) {
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 12; i++ {
		text += fmt.Sprintf("a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), i-1)
	}
	if _, _, err := Decode(strings.NewReader(text), ""); err == nil || !strings.Contains(err.Error(), "aliases") {
		t.Errorf("got %v", err)
	}
}

// The schemas are generated; this fails when the module moves on without them.
func TestSchemasAreThoseOfTheModule(t *testing.T) {
	version, err := schemas.ReadFile("schemas/VERSION")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "istio.io/api " + strings.TrimSpace(string(version)); !strings.Contains(string(mod), want) {
		t.Errorf("schemas/ is of %s, go.mod is not: run go generate ./mesh/manifest", want)
	}
}

func TestEveryMeshKindHasASchemaThatCompiles(t *testing.T) {
	for gvk := range Scheme().AllKnownTypes() {
		if !strings.HasSuffix(gvk.Group, ".istio.io") || strings.HasSuffix(gvk.Kind, "List") || strings.HasSuffix(gvk.Kind, "Options") || gvk.Kind == "WatchEvent" {
			continue
		}
		s, err := schemaOf(gvk.Group, gvk.Kind)
		if err != nil || s == nil || s.rules == nil && gvk.Kind != "ProxyConfig" {
			t.Errorf("%s: schema %v, error %v", gvk, s != nil, err)
		}
	}
}

func TestMistakesInTheTextAreToldWithTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"a: 1\nb: {x: 1\nc: 2\n":  "f:2: not YAML: did not find expected ',' or '}'",
		"a:\n  - b\n c: 1\n":      "f:3: not YAML: did not find expected key",
		"x:\n  y: 1\n z: 2\n":     "f:3: not YAML: did not find expected key",
		"a: 1\nb: \"x\n":          "f:2: not YAML: found unexpected end of stream",
		"a: 1\n\tb: 2\n":          "f:2: not YAML: found a tab character that violates indentation",
		"a: 1\nb: c: d\n":         "f:2: not YAML: mapping values are not allowed in this context",
		"a: 1\nb: ]\n":            "f:2: not YAML: did not find expected node content",
		"a: 1\nb: *nope\n":        "f:2: not YAML: unknown anchor 'nope' referenced",
		"a: 1\nc: [1,\n\n":        "f:2: not YAML: did not find expected node content",
		"# x\n---\na: 1\nb: @x\n": "f:4: not YAML: found character that cannot start any token",
		"{\"a\": 1,\n \"b\" 2}":   "f:2: not JSON: invalid character '2' after object key",
		"{\"a\": 1,\n \"a\": 2}":  "f:2: key \"a\" stands here a second time; the first is in line 1",
		"a: 1\n\na: 2\n":          "f:3: key \"a\" stands here a second time; the first is in line 1",
	} {
		_, _, err := Decode(strings.NewReader(text), "f")
		if err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s", text, err, want)
		}
	}
}
