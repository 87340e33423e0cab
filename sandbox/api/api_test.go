package api

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/sandbox/store"
)

func newServer(t *testing.T) *Server {
	t.Helper()
	s := &Server{Store: store.New(), Networks: Networks{
		ClusterIPs:    []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		LoadBalancers: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/24")},
	}}
	apply(t, s, "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default}\n")
	return s
}

func apply(t *testing.T, s *Server, text string) []Result {
	t.Helper()
	results, err := s.Apply(t.Context(), Split("test.yaml", []byte(text)), ApplyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Error != "" {
			t.Fatal(r.Error)
		}
	}
	return results
}

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {team: a, old: x}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: app, image: "web:1", env: [{name: A, value: "1"}, {name: B, value: "2"}]}
`

func TestABrokenManifestIsRefusedWithFileAndLine(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"syntax":                        {"apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n labels: {}\n", "m.yaml:5: broken YAML: did not find expected key"},
		"syntax in the second document": {"# first\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: [\n", "m.yaml:6: broken YAML"},
		"twice the same key":            {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\nkind: Pod\n", `m.yaml:4: broken YAML: key "kind" already set in map`},
		"unknown field":                 {strings.Replace(deployment, "env:", "envs:", 1), `m.yaml:13: Deployment "web": spec.template.spec.containers[0].envs: unknown field; did you mean "env"?`},
		"wrong type":                    {strings.Replace(deployment, "replicas: 2", "replicas: two", 1), `m.yaml:7: Deployment "web": spec.replicas: string where int32 is needed`},
		"two unknown fields":            {strings.Replace(strings.Replace(deployment, "env:", "envs:", 1), "replicas:", "replica:", 1), "m.yaml:7: Deployment \"web\": spec.replica: unknown field; did you mean \"replicas\"?"},
		"number for a string":           {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {port: 80}\n", `m.yaml:4: ConfigMap "a": data: number where string is needed: put the value in quotes`},
		"misspelt kind":                 {strings.Replace(deployment, "kind: Deployment", "kind: Deploymant", 1), `m.yaml:2: no matches for kind "Deploymant" in version "apps/v1": did you mean Deployment?`},
		"kind of another group":         {strings.Replace(deployment, "apps/v1", "v1", 1), `m.yaml:2: no matches for kind "Deployment" in version "v1": Deployment has apiVersion apps/v1`},
		"unknown kind":                  {"apiVersion: v1\nkind: Widget\nmetadata: {name: a}\n", `m.yaml:2: no matches for kind "Widget" in version "v1"`},
		"old version":                   {strings.Replace(deployment, "apps/v1", "apps/v1beta1", 1), `m.yaml:1: Deployment "web": apiVersion "apps/v1beta1" is not served; use "apps/v1"`},
		"no kind":                       {"\n\nmetadata: {name: a}\n", "m.yaml:3: apiVersion and kind are needed"},
		"no object":                     {"- a\n- b\n", "m.yaml:1: the document is not a Kubernetes object but a list"},
		"no name":                       {"apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: b}}\n", "m.yaml:3: Pod: metadata.name is missing"},
		"selector":                      {strings.Replace(deployment, "labels: {app: web}}", "labels: {app: wob}}", 1), "m.yaml:10: Deployment \"web\": spec.template.metadata.labels"},
		"bad name":                      {"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: Upper\n", `m.yaml:4: Namespace "Upper": metadata.name: Invalid value`},
		"volume":                        {strings.Replace(deployment, "env: [", "volumeMounts: [{name: v, mountPath: /v}], env: [", 1), "volumeMounts[0].name: Not found: \"v\""},
		"namespace":                     {strings.Replace(deployment, "name: web\n", "name: web\n  namespace: nope\n", 1), `namespaces "nope" not found; create it with "weft sandbox create namespace nope"`},
		"mesh kind":                     {"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\nspec:\n  hosts: [a]\n  http:\n  - timeout: x\n", "m.yaml:7: VirtualService \"r\": spec.http[0].timeout: bad"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.Mesh = func(o store.Object) ([]error, error) { return nil, badField{"spec.http[0].timeout"} }
			good := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\n"
			docs := append(Split("good.yaml", []byte(good)), Split("m.yaml", []byte(c.text))...)
			_, err := s.Apply(t.Context(), docs, ApplyOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if s.Store.Get(store.Key{Resource: "configmaps", Namespace: "default", Name: "good"}) != nil {
				t.Error("the good document was applied all the same")
			}
		})
	}
}

type badField struct{ path string }

func (b badField) Error() string     { return b.path + ": bad" }
func (b badField) FieldPath() string { return b.path }

func TestAllFaultsOfAManifestAreReportedAtOnce(t *testing.T) {
	s := newServer(t)
	text := "apiVersion: v1\nkind: Widget\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: B}\n"
	_, err := s.Apply(t.Context(), Split("m.yaml", []byte(text)), ApplyOptions{})
	if err == nil || !strings.Contains(err.Error(), "m.yaml:2:") || !strings.Contains(err.Error(), "m.yaml:7:") {
		t.Errorf("%v, want both faults", err)
	}
}

func TestApplyLeavesAloneWhatOtherVerbsChanged(t *testing.T) {
	s := newServer(t)
	if r := apply(t, s, strings.Replace(deployment, "  replicas: 2\n", "", 1)); r[0].Verb != "created" || r[0].Object != "deployment.apps/web" {
		t.Errorf("first apply: %+v", r)
	}
	key := store.Key{Resource: "deployments.apps", Namespace: "default", Name: "web"}
	// scale, label, rollout restart
	for _, p := range []string{`{"spec":{"replicas":5}}`, `{"metadata":{"labels":{"added":"y"}}}`, `{"spec":{"template":{"metadata":{"annotations":{"restartedAt":"now"}}}}}`} {
		if _, err := s.Patch(key, types.MergePatchType, []byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if r := apply(t, s, strings.Replace(deployment, "  replicas: 2\n", "", 1)); r[0].Verb != "unchanged" {
		t.Errorf("the same manifest again: %s, want unchanged", r[0].Verb)
	}
	next := strings.NewReplacer("  replicas: 2\n", "", ", old: x", "", "web:1", "web:2", ", {name: B, value: \"2\"}", "").Replace(deployment)
	if r := apply(t, s, next); r[0].Verb != "configured" {
		t.Errorf("a new manifest: %s, want configured", r[0].Verb)
	}
	d := store.Get[*appsv1.Deployment](s.Store, "deployments.apps", "default", "web")
	if *d.Spec.Replicas != 5 || d.Labels["added"] != "y" || d.Spec.Template.Annotations["restartedAt"] != "now" {
		t.Errorf("apply undid scale, label or restart: replicas %d, labels %v, annotations %v", *d.Spec.Replicas, d.Labels, d.Spec.Template.Annotations)
	}
	if _, still := d.Labels["old"]; still {
		t.Error("a label that was removed from the manifest is still there")
	}
	c := d.Spec.Template.Spec.Containers[0]
	if c.Image != "web:2" || len(c.Env) != 1 {
		t.Errorf("container after apply: image %s, env %v", c.Image, c.Env)
	}
	if r := apply(t, s, strings.Replace(next, "spec:\n", "spec:\n  replicas: 1\n", 1)); r[0].Verb != "configured" {
		t.Errorf("replicas in the manifest: %s", r[0].Verb)
	}
	if d := store.Get[*appsv1.Deployment](s.Store, "deployments.apps", "default", "web"); *d.Spec.Replicas != 1 {
		t.Errorf("replicas %d, want the manifest's 1", *d.Spec.Replicas)
	}
}

func TestMeshObjectsKeepExactlyWhatWasWritten(t *testing.T) {
	s := newServer(t)
	vs := "apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: r}\nspec:\n  hosts: [a]\n  http:\n  - route: [{destination: {host: a}, weight: 90}, {destination: {host: b}, weight: 10}]\n"
	apply(t, s, vs)
	apply(t, s, strings.Replace(vs, "weight: 90}, {destination: {host: b}, weight: 10}", "weight: 100}", 1))
	o := s.Store.Get(store.Key{Resource: "virtualservices.networking.istio.io", Namespace: "default", Name: "r"})
	if v := o.GetObjectKind().GroupVersionKind().Version; v != "v1beta1" {
		t.Errorf("version %s, want the author's v1beta1", v)
	}
	if o.GetGeneration() != 2 {
		t.Errorf("generation %d after one change, want 2", o.GetGeneration())
	}
	if r := apply(t, s, strings.Replace(vs, "weight: 90}, {destination: {host: b}, weight: 10}", "weight: 100}", 1)); r[0].Verb != "unchanged" {
		t.Errorf("the same again: %s", r[0].Verb)
	}
}

func TestServicesGetAddresses(t *testing.T) {
	s := newServer(t)
	apply(t, s, `apiVersion: v1
kind: Service
metadata: {name: plain}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec: {ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: LoadBalancer, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: fixed}
spec: {clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: example.com}
`)
	get := func(n string) *corev1.Service { return store.Get[*corev1.Service](s.Store, "services", "default", n) }
	if svc := get("plain"); svc.Spec.ClusterIP != "10.96.0.100" || svc.Spec.Ports[0].TargetPort.IntValue() != 80 || svc.Spec.Ports[0].Protocol != "TCP" || svc.Spec.Type != "ClusterIP" {
		t.Errorf("plain: %+v", svc.Spec)
	}
	if svc := get("both"); len(svc.Spec.ClusterIPs) != 2 || !strings.HasPrefix(svc.Spec.ClusterIPs[1], "fd00:96::") {
		t.Errorf("both: %v", svc.Spec.ClusterIPs)
	}
	if svc := get("headless"); svc.Spec.ClusterIP != "None" || len(svc.Spec.IPFamilies) != 1 {
		t.Errorf("headless: %+v", svc.Spec)
	}
	if svc := get("outside"); len(svc.Status.LoadBalancer.Ingress) != 1 || svc.Status.LoadBalancer.Ingress[0].IP != "10.97.0.100" {
		t.Errorf("outside: %+v", svc.Status)
	}
	if svc := get("fixed"); svc.Spec.ClusterIP != "10.96.0.10" {
		t.Errorf("fixed: %s", svc.Spec.ClusterIP)
	}
	if svc := get("elsewhere"); svc.Spec.ClusterIP != "" {
		t.Errorf("ExternalName has the address %s", svc.Spec.ClusterIP)
	}
	_, err := s.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "thief"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Ports: []corev1.ServicePort{{Port: 80}}}})
	if err == nil || !strings.Contains(err.Error(), "already taken by service default/fixed") {
		t.Errorf("a taken address: %v", err)
	}
	was := get("plain").Spec.ClusterIP
	apply(t, s, "apiVersion: v1\nkind: Service\nmetadata: {name: plain}\nspec: {ports: [{port: 81}]}\n")
	if svc := get("plain"); svc.Spec.ClusterIP != was || svc.Spec.Ports[0].Port != 81 || len(svc.Spec.Ports) != 1 {
		t.Errorf("after another apply: %+v", svc.Spec)
	}
}

func TestWhatKubernetesForbidsToChangeIsRefused(t *testing.T) {
	s := newServer(t)
	apply(t, s, deployment)
	results, err := s.Apply(t.Context(), Split("m.yaml", []byte(strings.ReplaceAll(deployment, "app: web", "app: wob"))), ApplyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(results[0].Error, "field is immutable") {
		t.Errorf("changed selector: %+v", results)
	}
}

func TestANamespaceThatIsGoingTakesNothingNew(t *testing.T) {
	s := newServer(t)
	apply(t, s, "apiVersion: v1\nkind: Namespace\nmetadata: {name: old}\n")
	if _, err := s.Delete(store.Key{Resource: "namespaces", Name: "old"}, nil); err != nil {
		t.Fatal(err)
	}
	_, err := s.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "old", Name: "x"}})
	if !apierrors.IsForbidden(err) {
		t.Errorf("%v, want Forbidden", err)
	}
	if _, err := s.Delete(store.Key{Resource: "namespaces", Name: "default"}, nil); !apierrors.IsForbidden(err) {
		t.Errorf("deleting default: %v, want Forbidden", err)
	}
}

func TestAPodNeedsItsServiceAccount(t *testing.T) {
	s := newServer(t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{ServiceAccountName: "nobody", Containers: []corev1.Container{{Name: "a", Image: "a"}}}}
	if _, err := s.Create(t.Context(), pod); err == nil || !strings.Contains(err.Error(), `serviceaccount "nobody" not found`) {
		t.Errorf("%v", err)
	}
	pod.Spec.ServiceAccountName = ""
	o, err := s.Create(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if p := o.(*corev1.Pod); p.Spec.ServiceAccountName != "default" || *p.Spec.TerminationGracePeriodSeconds != 30 || p.Spec.RestartPolicy != "Always" {
		t.Errorf("defaults: %+v", p.Spec)
	}
}

func TestFlagsOfApply(t *testing.T) {
	s := newServer(t)
	docs := Split("m.yaml", []byte(deployment))
	if r, err := s.Apply(t.Context(), docs, ApplyOptions{DryRun: true}); err != nil || r[0].Verb != "created" {
		t.Errorf("dry run: %v %v", r, err)
	}
	if len(s.Store.List("deployments.apps", "", nil)) != 0 {
		t.Error("a dry run created something")
	}
	apply(t, s, deployment)
	if r, err := s.Apply(t.Context(), docs, ApplyOptions{Create: true}); err != nil || !strings.Contains(r[0].Error, "already exists") {
		t.Errorf("create of what exists: %v %v", r, err)
	}
	named := Split("m.yaml", []byte(strings.Replace(deployment, "name: web\n", "name: web\n  namespace: default\n", 1)))
	if _, err := s.Apply(context.Background(), named, ApplyOptions{Namespace: "other", Enforce: true}); err == nil || !strings.Contains(err.Error(), `is in namespace "default", but -n says "other"`) {
		t.Errorf("-n against metadata.namespace: %v", err)
	}
}

func TestMessagesReadLikeKubectls(t *testing.T) {
	for want, err := range map[string]error{
		`Error from server (NotFound): pods "x" not found`: store.NotFound(store.Key{Resource: "pods", Name: "x"}),
		"error: plain": errors.New("plain"),
	} {
		if got := Message(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func FuzzReadingManifestsNeverPanics(f *testing.F) {
	f.Add(deployment)
	f.Add("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod, metadata: {name: a}}]\n")
	f.Add("a: &a [*a]\n---\n- x")
	f.Fuzz(func(t *testing.T, text string) {
		for _, d := range Split("f.yaml", []byte(text)) {
			objects, err := Read(d)
			if err == nil && len(objects) == 0 && !strings.Contains(text, "List") {
				t.Errorf("no object and no error from %q", text)
			}
			for _, o := range objects {
				k, ok := store.KindFor(o)
				if !ok {
					t.Fatalf("%T is of no kind", o)
				}
				setDefaults(o)
				validate(k, o)
			}
		}
	})
}
