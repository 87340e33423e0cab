package deploy_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	yamls "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/webhook"
)

func TestMain(m *testing.M) { os.Exit(kit.PrivateNetwork(m)) }

// namespace of the tests' control plane.
const namespace = "istio-system"

// releases are what users call the releases of the charts.
var releases = map[string]string{deploy.Base: "istio-base", deploy.Istiod: "istiod", deploy.CNI: "istio-cni", deploy.Gateway: "istio-ingressgateway"}

// parse reads values as users write them.
func parse(t testing.TB, text string) map[string]any {
	t.Helper()
	var values map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &values); err != nil {
		t.Fatal(err)
	}
	return values
}

func try(t testing.TB, chart, values string) (*deploy.Rendered, error) {
	t.Helper()
	return deploy.Render(chart, deploy.Release{Name: releases[chart], Namespace: namespace}, parse(t, values))
}

func render(t testing.TB, chart, values string) *deploy.Rendered {
	t.Helper()
	r, err := try(t, chart, values)
	if err != nil {
		t.Fatalf("chart %s with\n%s\n%v", chart, values, err)
	}
	return r
}

// objects are what a chart becomes.
func objects(t testing.TB, r *deploy.Rendered) (out []*unstructured.Unstructured) {
	t.Helper()
	d := yamls.NewYAMLOrJSONDecoder(bytes.NewReader(r.YAML()), 4096)
	for {
		o := new(unstructured.Unstructured)
		if err := d.Decode(&o.Object); err == io.EOF {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
}

// object finds the one object of a kind, or that with a name.
func object[T any](t testing.TB, r *deploy.Rendered, kind, name string) *T {
	t.Helper()
	into := new(T)
	n := 0
	for _, o := range objects(t, r) {
		if o.GetKind() == kind && (name == "" || o.GetName() == name) {
			n++
			if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, into, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n != 1 {
		t.Fatalf("there are %d of %s %s", n, kind, name)
	}
	return into
}

func TestValuesThatNoChartKnowsAreErrors(t *testing.T) {
	for _, c := range []struct{ chart, values, want string }{
		{deploy.Istiod, "pilot: {replicaCuont: 2}", "'/pilot': additional properties 'replicaCuont'"},
		{deploy.Istiod, "replicaCuont: 2", "additional properties 'replicaCuont'"},
		{deploy.Istiod, "global: {proxy: {imgae: x}}", "'/global/proxy': additional properties 'imgae'"},
		{deploy.Istiod, "pilot: {autoscaleMin: two}", "'/pilot/autoscaleMin': got string"},
		{deploy.Istiod, "revision: 1.2.3", "'/revision': '1.2.3' does not match"},
		{deploy.Istiod, "revision: canary\nrevisionTags: [canary]", `"canary" is the name of the revision itself`},
		{deploy.Istiod, "global: {istioNamespace: elsewhere}", "runs in the release's namespace"},
		{deploy.Istiod, "meshConfig: {rootNamespace: elsewhere}", "read from the control plane's own namespace"},
		{deploy.CNI, "cni: {excludeNamespaces: kube-system}", "'/cni/excludeNamespaces': got string"},
		{deploy.CNI, "global: {platform: gek}", "'/global/platform': value must be one of"},
		{deploy.Gateway, "serivce: {type: NodePort}", "additional properties 'serivce'"},
		{deploy.Gateway, "kind: StatefulSet", "'/kind': value must be one of"},
		{deploy.Base, "defaultRevison: x", "additional properties 'defaultRevison'"},
		{deploy.Base, "global: {istioNamespace: elsewhere}", "install the base chart where the control plane is"},
	} {
		if _, err := try(t, c.chart, c.values); err == nil {
			t.Errorf("%s: %s was accepted", c.chart, c.values)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s: %v\nwant %s", c.chart, c.values, err, c.want)
		}
	}
}

func TestOneFileOfValuesServesAllCharts(t *testing.T) {
	const values = `
revision: canary
revisionTags: [prod]
defaultRevision: canary
meshConfig: {accessLogFile: /dev/stdout}
pilot: {env: {PILOT_DEBOUNCE_AFTER: 1s}}
cni: {excludeNamespaces: [kube-system]}
sidecarInjectorWebhook: {reinvocationPolicy: IfNeeded}
base: {enableCRDTemplates: true}
global: {hub: example.com/x, tag: v1, platform: gke, meshID: m, network: net1, logAsJson: true, proxy: {logLevel: info}}
`
	for _, chart := range deploy.Names {
		render(t, chart, values)
	}
}

func TestIstiosValuesWithoutEffectAreNamed(t *testing.T) {
	for _, chart := range deploy.Names {
		if r := render(t, chart, "{}"); strings.Contains(r.Notes, "do nothing") {
			t.Errorf("chart %s complains of its own defaults:\n%s", chart, r.Notes)
		}
	}
	r := render(t, deploy.Istiod, "pilot: {traceSampling: 100}\nglobal: {meshNetworks: {n: {endpoints: []}}}\ntelemetry: {v2: {enabled: true}}")
	for _, want := range []string{"pilot.traceSampling: use", "global.meshNetworks: split-horizon", "telemetry: use Telemetry"} {
		if !strings.Contains(r.Notes, want) {
			t.Errorf("the notes lack %q:\n%s", want, r.Notes)
		}
	}
	if r = render(t, deploy.CNI, "cni: {repair: {deletePods: true}}"); !strings.Contains(r.Notes, "cni.repair: pods are always") {
		t.Errorf("the notes say nothing of cni.repair:\n%s", r.Notes)
	}
}

func TestValuesBelowPilotAndAtTheTopMeanTheSame(t *testing.T) {
	const nested = "pilot: {replicaCount: 4, autoscaleEnabled: false, env: {A: 1}, cpu: {targetAverageUtilization: 50}, resources: {limits: {memory: 1Gi}}}"
	const flat = "replicaCount: 4\nautoscaleEnabled: false\nenv: {A: 1}\ncpu: {targetAverageUtilization: 50}\nresources: {limits: {memory: 1Gi}}"
	if diff := cmp.Diff(string(render(t, deploy.Istiod, nested).YAML()), string(render(t, deploy.Istiod, flat).YAML())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(string(render(t, deploy.CNI, "cni: {cniBinDir: /x, chained: false, taint: {enabled: false}}").YAML()),
		string(render(t, deploy.CNI, "cniBinDir: /x\nchained: false\ntaint: {enabled: false}").YAML())); diff != "" {
		t.Error(diff)
	}
}

func TestMeshConfigIsMergedOverWhatValuesSay(t *testing.T) {
	r := render(t, deploy.Istiod, `
revision: canary
global: {meshID: one, proxy: {tracer: zipkin}}
meshConfig:
  enablePrometheusMerge: false
  trustDomain: example.org
  defaultConfig: {tracing: {sampling: 10}, holdApplicationUntilProxyStarts: true}
  discoverySelectors: [{matchLabels: {mesh: "yes"}}]
`)
	text := object[corev1.ConfigMap](t, r, "ConfigMap", "istio-canary").Data["mesh"]
	m, _, err := mesh.ParseMeshConfig(text)
	if err != nil {
		t.Fatal(err, text)
	}
	if m.EnablePrometheusMerge.GetValue() || m.TrustDomain != "example.org" || m.RootNamespace != namespace || len(m.DiscoverySelectors) != 1 {
		t.Errorf("got %s", text)
	}
	d := m.DefaultConfig
	if d.DiscoveryAddress != "istiod-canary.istio-system.svc:15012" || d.MeshId != "one" || !d.HoldApplicationUntilProxyStarts.GetValue() ||
		d.GetTracing().GetZipkin().GetAddress() != "zipkin.istio-system:9411" || d.GetTracing().GetSampling() != 10 {
		t.Errorf("got %s", text)
	}
	d1 := object[appsv1.Deployment](t, r, "Deployment", "istiod-canary")
	if args := strings.Join(d1.Spec.Template.Spec.Containers[0].Args, " "); !strings.Contains(args, "--trust-domain=example.org") {
		t.Errorf("weftd is started with %s", args)
	}
}

// sandboxSelectors are those that the sandbox's webhooks have, by webhook.
func sandboxSelectors(t *testing.T) map[string][2]*metav1.LabelSelector {
	t.Helper()
	text, err := os.ReadFile(kit.RepoRoot(t) + "/sandbox/system/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		if strings.Contains(doc, "kind: MutatingWebhookConfiguration") {
			var w admissionv1.MutatingWebhookConfiguration
			if err := yaml.Unmarshal([]byte(doc), &w); err != nil {
				t.Fatal(err)
			}
			return selectors(&w)
		}
	}
	t.Fatal("the sandbox has no webhooks")
	return nil
}

func selectors(w *admissionv1.MutatingWebhookConfiguration) map[string][2]*metav1.LabelSelector {
	out := map[string][2]*metav1.LabelSelector{}
	for _, h := range w.Webhooks {
		out[h.Name] = [2]*metav1.LabelSelector{h.NamespaceSelector, h.ObjectSelector}
	}
	return out
}

func TestWebhooksSelectTheSamePodsAsInTheSandbox(t *testing.T) {
	got := selectors(object[admissionv1.MutatingWebhookConfiguration](t, render(t, deploy.Istiod, "{}"), "MutatingWebhookConfiguration", "istio-sidecar-injector"))
	never := metav1.LabelSelectorRequirement{Key: "kubernetes.io/metadata.name", Operator: "NotIn",
		Values: []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}}
	for name, s := range got {
		last := len(s[0].MatchExpressions) - 1
		if diff := cmp.Diff(never, s[0].MatchExpressions[last]); diff != "" {
			t.Errorf("%s: system namespaces are not left out: %s", name, diff)
		}
		s[0].MatchExpressions = s[0].MatchExpressions[:last]
	}
	if diff := cmp.Diff(sandboxSelectors(t), got); diff != "" {
		t.Error(diff)
	}
}

func TestARevisionIsChosenByNameAndByTag(t *testing.T) {
	r := render(t, deploy.Istiod, "revision: canary\nrevisionTags: [prod, default]")
	for name, want := range map[string]int{"istio-sidecar-injector-canary": 2, "istio-revision-tag-prod": 2, "istio-revision-tag-default": 4} {
		w := object[admissionv1.MutatingWebhookConfiguration](t, r, "MutatingWebhookConfiguration", name)
		if len(w.Webhooks) != want || w.Labels["istio.io/rev"] != "canary" {
			t.Errorf("%s has %d webhooks and labels %v", name, len(w.Webhooks), w.Labels)
		}
		for _, h := range w.Webhooks {
			if h.ClientConfig.Service.Name != "istiod-canary" || *h.FailurePolicy != admissionv1.Fail || *h.TimeoutSeconds != 5 {
				t.Errorf("%s: %s calls %v, %s, %ds", name, h.Name, h.ClientConfig.Service, *h.FailurePolicy, *h.TimeoutSeconds)
			}
		}
	}
	for _, o := range objects(t, r) {
		if n := o.GetName(); !strings.Contains(n, "canary") && !strings.HasPrefix(n, "istio-revision-tag-") {
			t.Errorf("%s %s would be shared with another revision", o.GetKind(), n)
		}
	}
}

func TestNamespacesAreInjectedByDefaultWhenAsked(t *testing.T) {
	r := render(t, deploy.Istiod, "sidecarInjectorWebhook: {enableNamespacesByDefault: true}")
	w := object[admissionv1.MutatingWebhookConfiguration](t, r, "MutatingWebhookConfiguration", "")
	h := w.Webhooks[len(w.Webhooks)-1]
	if h.Name != "auto.sidecar-injector.istio.io" || !strings.Contains(fmt.Sprint(h.NamespaceSelector), namespace) {
		t.Errorf("got %s, %v", h.Name, h.NamespaceSelector)
	}
}

func TestImagesComeFromWhereValuesSay(t *testing.T) {
	for _, c := range []struct{ values, want string }{
		{"{}", "docker.io/weftmesh/weft:dev"},
		{"global: {hub: r.example/x, tag: v2}", "r.example/x/weft:v2"},
		{"global: {hub: r.example/x, tag: v2}\npilot: {tag: v3, hub: h}\ncni: {tag: v3, hub: h}", "h/weft:v3"},
		{"pilot: {image: r.example/y@sha256:00}\ncni: {image: r.example/y@sha256:00}", "r.example/y@sha256:00"},
	} {
		d := object[appsv1.Deployment](t, render(t, deploy.Istiod, c.values), "Deployment", "").Spec.Template.Spec.Containers[0]
		n := object[appsv1.DaemonSet](t, render(t, deploy.CNI, c.values), "DaemonSet", "").Spec.Template.Spec.Containers[0]
		if d.Image != c.want || n.Image != c.want {
			t.Errorf("%s: %s and %s, want %s", c.values, d.Image, n.Image, c.want)
		}
	}
}

func TestPlatformsPutTheAgentWhereTheirRuntimeLooks(t *testing.T) {
	for platform, want := range map[string][]string{
		"":          {"--cni-bin-dir=/opt/cni/bin", "--cni-conf-dir=/etc/cni/net.d", "--runtime-endpoint=/run/containerd/containerd.sock"},
		"gke":       {"--cni-bin-dir=/home/kubernetes/bin", "--cni-conf-dir=/etc/cni/net.d"},
		"k3s":       {"--cni-bin-dir=/var/lib/rancher/k3s/data/cni", "--cni-conf-dir=/var/lib/rancher/k3s/agent/etc/cni/net.d", "--runtime-endpoint=/run/k3s/containerd/containerd.sock"},
		"openshift": {"--cni-bin-dir=/var/lib/cni/bin", "--cni-conf-dir=/etc/cni/multus/net.d", "--runtime-endpoint=/run/crio/crio.sock"},
	} {
		d := object[appsv1.DaemonSet](t, render(t, deploy.CNI, "global: {platform: "+platform+"}"), "DaemonSet", "")
		c := d.Spec.Template.Spec.Containers[0]
		for _, arg := range want {
			if !strings.Contains(strings.Join(c.Args, " ")+" ", arg+" ") {
				t.Errorf("%s: no %s in %v", platform, arg, c.Args)
			}
			flag, path, _ := strings.Cut(arg, "=")
			if flag == "--runtime-endpoint" {
				path = path[:strings.LastIndexByte(path, '/')]
			}
			mounted := false
			for _, m := range c.VolumeMounts {
				mounted = mounted || m.MountPath == path
			}
			if !mounted {
				t.Errorf("%s: %s is not mounted", platform, path)
			}
		}
		if privileged := *c.SecurityContext.Privileged; privileged != (platform == "openshift") {
			t.Errorf("%s: privileged is %v", platform, privileged)
		}
	}
	d := object[appsv1.DaemonSet](t, render(t, deploy.CNI, "global: {platform: k3s}\ncni: {cniBinDir: /mine}"), "DaemonSet", "")
	if args := strings.Join(d.Spec.Template.Spec.Containers[0].Args, " "); !strings.Contains(args, "--cni-bin-dir=/mine ") {
		t.Errorf("what the user says does not win over the platform: %s", args)
	}
}

func TestTheAgentsOwnNamespaceIsExcluded(t *testing.T) {
	r, err := deploy.Render(deploy.CNI, deploy.Release{Name: "istio-cni", Namespace: "mesh-nodes"}, parse(t, "cni: {excludeNamespaces: [kube-system]}"))
	if err != nil {
		t.Fatal(err)
	}
	d := object[appsv1.DaemonSet](t, r, "DaemonSet", "")
	if args := strings.Join(d.Spec.Template.Spec.Containers[0].Args, " "); !strings.Contains(args, "--exclude-namespaces=kube-system,mesh-nodes ") {
		t.Errorf("got %s", args)
	}
}

func TestAReplicaHasTimeToHandOverItsProxies(t *testing.T) {
	d := object[appsv1.Deployment](t, render(t, deploy.Istiod, "pilot: {drainSeconds: 45}"), "Deployment", "")
	if grace := *d.Spec.Template.Spec.TerminationGracePeriodSeconds; grace != 55 || !strings.Contains(strings.Join(d.Spec.Template.Spec.Containers[0].Args, " "), "--drain=45s") {
		t.Errorf("%d s of grace, %v", grace, d.Spec.Template.Spec.Containers[0].Args)
	}
}

func TestTheAgentTakesEverythingBackWithTheFlagsItHad(t *testing.T) {
	const values = "cni: {cniBinDir: /x, chained: false, uninstall: %v}"
	before := object[appsv1.DaemonSet](t, render(t, deploy.CNI, fmt.Sprintf(values, false)), "DaemonSet", "")
	after := object[appsv1.DaemonSet](t, render(t, deploy.CNI, fmt.Sprintf(values, true)), "DaemonSet", "")
	want := append([]string{"uninstall", "--stay"}, before.Spec.Template.Spec.Containers[0].Args...)
	if diff := cmp.Diff(want, after.Spec.Template.Spec.Containers[0].Args); diff != "" {
		t.Error(diff)
	}
	if n := after.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.String(); n != "100%" {
		t.Errorf("it goes from node to node, %s at a time", n)
	}
}

func TestTheInjectorUnderstandsItsConfigMap(t *testing.T) {
	for _, values := range append(variants[deploy.Istiod], `
global: {network: 1, multiCluster: {clusterName: 2}, proxy: {excludeInboundPorts: 8080, includeInboundPorts: 15021, excludeIPRanges: 10.0.0.0/8}}`) {
		r := render(t, deploy.Istiod, values)
		for _, o := range objects(t, r) {
			if o.GetKind() != "ConfigMap" || !strings.HasPrefix(o.GetName(), "istio-sidecar-injector") {
				continue
			}
			m := object[corev1.ConfigMap](t, r, "ConfigMap", o.GetName())
			options, err := webhook.ReadOptions(webhook.Options{}, []byte(m.Data["values"]), []byte(m.Data["config"]))
			if err != nil {
				t.Errorf("with %s\n%v", values, err)
			} else if options.Policy != webhook.PolicyEnabled || options.Resources == nil {
				t.Errorf("with %s\ngot %+v", values, options)
			}
		}
	}
}

var update = flag.Bool("update", false, "rewrite testdata")

// What a reviewer of a change sees: the charts with their defaults.
func TestGolden(t *testing.T) {
	for _, chart := range []string{deploy.Istiod, deploy.CNI, deploy.Gateway} {
		file, got := "testdata/"+chart+".yaml", render(t, chart, "{}").YAML()
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("chart %s; go test ./deploy -update takes it as it is\n%s", chart, diff)
		}
	}
}
