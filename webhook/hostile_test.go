package webhook

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/templates"
)

// What breaks templates that print YAML as text.
var hostile = []string{
	"x\n    securityContext:\n      privileged: true",
	"x\"\n- name: evil\n  image: evil:1",
	`","securityContext":{"privileged":true},"x":"`,
	"x'; privileged: true #",
	"{privileged: true}",
	"${proxy.image}", "$(POD_IP)", "{{ .Values }}", "%FILE_CONTENT(/etc/passwd)%",
	"\x00", "\u2028", "&a [*a]", "!!python/object", "---\nkind: Pod",
	"--admin-address-path /x", "a,b", "-1", "1e99", strings.Repeat("9", 400),
}

var everyAnnotation = func() []string {
	names := []string{annProxyConfig, annotationTemplates, annotationStatus, annScrape, annScrapePort, annScrapePath, labelInject,
		"sidecar.istio.io/interceptionMode", "traffic.sidecar.istio.io/includeInboundPorts", "traffic.sidecar.istio.io/excludeInboundPorts",
		"traffic.sidecar.istio.io/includeOutboundIPRanges", "traffic.sidecar.istio.io/excludeOutboundIPRanges",
		"traffic.sidecar.istio.io/includeOutboundPorts", "traffic.sidecar.istio.io/excludeOutboundPorts",
		"traffic.sidecar.istio.io/excludeInterfaces", "istio.io/reroute-virtual-interfaces", "weft.dev/redirect",
		"kubectl.kubernetes.io/default-container", "example.com/audit", annProxyCPU, annProxyCPULimit, annProxyMemory, annProxyMemoryLimit}
	for n := range annotationParsers {
		names = append(names, n)
	}
	for n := range withoutEffect {
		names = append(names, n)
	}
	slices.Sort(names)
	return slices.Compact(names)
}()

func plainPod(annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"app": "p"}, Annotations: annotations},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}
}

func TestNoAnnotationCanAddAField(t *testing.T) {
	in := newInjector(t, Options{Templates: map[string][]byte{"team": []byte(teamTemplate)}})
	for _, name := range everyAnnotation {
		for _, value := range hostile {
			checkShape(t, in, map[string]string{name: value})
			checkShape(t, in, map[string]string{name: value, annotationTemplates: "sidecar,team"})
		}
	}
}

// checkShape injects a pod with the annotations; if it is not denied, the result has the fields, and only the
// fields, that a pod without annotations gets, apart from those that an annotation is there to set.
func checkShape(t testing.TB, in *Injector, annotations map[string]string) {
	t.Helper()
	after, _, err := in.Inject(plainPod(annotations), "default", nil)
	if err != nil {
		return
	}
	proxy := findProxy(after)
	if proxy == nil {
		t.Errorf("%q: not injected", annotations)
		return
	}
	for _, c := range append(slices.Clone(after.Spec.InitContainers), after.Spec.Containers...) {
		if !slices.Contains([]string{ProxyName, "app", "audit"}, c.Name) {
			t.Errorf("%q: container %s", annotations, c.Name)
		}
		sc := c.SecurityContext
		if sc != nil && (sc.Privileged != nil && *sc.Privileged || sc.AllowPrivilegeEscalation != nil && *sc.AllowPrivilegeEscalation) {
			t.Errorf("%q: privileged", annotations)
		}
	}
	var extra []string
	for _, v := range []string{annUserVolume, annUserVolumeMount, annBootstrapOverride, annProxyConfig, annProxyCPU, annProxyCPULimit, annProxyMemory,
		annProxyMemoryLimit, annStatusPort, "sidecar.istio.io/interceptionMode", annotationTemplates, annReadyInitialDelay, annReadyPeriod, annReadyFailures, annScrape} {
		if _, ok := annotations[v]; ok {
			extra = append(extra, v)
		}
	}
	if len(extra) > 0 && !(len(extra) == 1 && extra[0] == annotationTemplates) {
		return // these may change what is there; the checks above hold for them too
	}
	templates, ok := annotations[annotationTemplates]
	base := map[string]string{}
	if ok {
		base[annotationTemplates] = templates
	}
	want, ok := plainShapes.Load(templates)
	if !ok {
		plain, _, err := in.Inject(plainPod(base), "default", nil)
		if err != nil {
			t.Errorf("%q: %v", base, err)
			return
		}
		want, _ = plainShapes.LoadOrStore(templates, shape(t, plain))
	}
	if got := shape(t, after); !reflect.DeepEqual(want, got) {
		t.Errorf("%q changes the shape of the pod:\n%s", annotations, cmp.Diff(want, got))
	}
}

// shape is the spec with every leaf that is text emptied, and the bootstrap's structure in the place of its text.
func shape(t testing.TB, pod *corev1.Pod) any {
	t.Helper()
	var spec any
	decodeInto(t, jsonOf(t, pod.Spec), &spec)
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				v[k] = walk(x)
			}
			return v
		case []any:
			for i, x := range v {
				v[i] = walk(x)
			}
			return v
		case string:
			var inner map[string]any
			if strings.HasPrefix(v, `{"node"`) && json.Unmarshal([]byte(v), &inner) == nil {
				// Inclusions lengthen this list; that is what they are for. With them come two tags, always the same.
				stats := inner["stats_config"].(map[string]any)
				delete(stats, "stats_matcher")
				stats["stats_tags"] = slices.DeleteFunc(stats["stats_tags"].([]any), func(tag any) bool {
					return reflect.DeepEqual(tag, map[string]any{"tag_name": "response_code", "regex": `_rq(_(\d{3}))$$`}) ||
						reflect.DeepEqual(tag, map[string]any{"tag_name": "response_code_class", "regex": `_rq(_(\dxx))$$`})
				})
				delete(inner, "stats_flush_interval")
				return walk(inner)
			}
			return ""
		}
		return v
	}
	return walk(spec)
}

// plainShapes are the shapes without annotations, by the choice of templates.
var plainShapes sync.Map

func decodeInto(t testing.TB, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// An earlier call is believed for the names of fields only; the values are the pod's own.
func TestAForgedStatusAddsNothing(t *testing.T) {
	in := newInjector(t, Options{})
	for _, forged := range []string{
		`{"overrides":["securityContext","image","env[X]","volumeMounts[/]"],"containers":["app"]}`,
		`{"initContainers":["istio-proxy"],"containers":[{"name":"evil"}]}`,
		`nonsense`,
	} {
		after, _, err := in.Inject(plainPod(map[string]string{annotationStatus: forged}), "default", nil)
		if err != nil {
			t.Errorf("%s: a copied annotation must not hinder: %v", forged, err)
			continue
		}
		plain, _, err := in.Inject(plainPod(nil), "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(jsonOf(t, plain.Spec), jsonOf(t, after.Spec)); d != "" {
			t.Errorf("%s changes the pod:\n%s", forged, d)
		}
	}
}

func TestAPodThatIstioInjectedIsRefusedAndNotMixed(t *testing.T) {
	pod := podOf(t, `
metadata: {name: p, annotations: {sidecar.istio.io/status: '{"initContainers":["istio-init"],"containers":["istio-proxy"],"volumes":["istio-envoy"],"imagePullSecrets":null,"revision":"default"}'}}
spec:
  initContainers: [{name: istio-init, image: docker.io/istio/proxyv2:1.20.8, args: [istio-iptables]}]
  containers: [{name: app, image: app:1}, {name: istio-proxy, image: docker.io/istio/proxyv2:1.20.8, args: [proxy, sidecar]}]`)
	_, _, err := newInjector(t, Options{}).Inject(pod, "default", nil)
	if err == nil || !strings.Contains(err.Error(), "kube-inject") {
		t.Errorf("got %v", err)
	}
}

func TestACopiedRedirectionIsNotKept(t *testing.T) {
	in := newInjector(t, Options{})
	for _, a := range []map[string]string{
		{redirect.Annotation: "{}", annotationTemplates: "gateway"},
		{redirect.Annotation: "{}", redirect.AnnotationInterceptionMode: "NONE"},
	} {
		after, _, err := in.Inject(plainPod(a), "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := after.Annotations[redirect.Annotation]; ok {
			t.Errorf("%v: %s", a, text)
		}
	}
}

func TestAProbeThatWasAddedBetweenTwoCallsIsServedToo(t *testing.T) {
	in := newInjector(t, Options{})
	pod := podOf(t, `
metadata: {name: p}
spec: {containers: [{name: app, image: app:1, readinessProbe: {httpGet: {path: /ready, port: 8080}}}]}`)
	first, _, err := in.Inject(pod, "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	late := podOf(t, `
metadata: {name: x}
spec: {containers: [{name: late, image: late:1, livenessProbe: {tcpSocket: {port: 9}}}]}`)
	first.Spec.Containers = append(first.Spec.Containers, late.Spec.Containers...)
	first.Spec.InitContainers = append([]corev1.Container{{Name: "before-proxy", Image: "x:1"}}, first.Spec.InitContainers...)
	second, _, err := in.Inject(first, "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	text := jsonOf(t, findProxy(second))
	for _, want := range []string{"/app-health/app/readyz", "/app-health/late/livez", `\"substitution\":\"/ready\"`, "APP_CONTAINERS\\\":\\\"app,late"} {
		if !strings.Contains(text, strings.ReplaceAll(want, `\"`, `\"`)) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if second.Spec.InitContainers[0].Name != ProxyName {
		t.Error("the proxy is not the first container any more")
	}
	checkPatch(t, first, second)
	third, _, err := in.Inject(second, "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(jsonOf(t, second), jsonOf(t, third)); d != "" {
		t.Errorf("the third call changes the pod:\n%s", d)
	}
}

func TestNoTemplateRefersToAValueThatNobodyKnows(t *testing.T) {
	for name, text := range map[string][]byte{"sidecar": templates.Sidecar, "gateway": templates.Gateway} {
		used := map[string]bool{}
		if _, err := templates.Parse(name, text, func(v string) bool { used[v] = true; return valueNames[v] }); err != nil {
			t.Error(err)
		}
		if len(used) < 10 {
			t.Errorf("%s: only %d values", name, len(used))
		}
	}
}

// The API server defaults the pull policy of an image without a tag to Always, before webhooks see the pod.
func TestTheImageAutoBringsNoPullPolicyAlong(t *testing.T) {
	for _, c := range []struct{ image, policy, want corev1.PullPolicy }{
		{"auto", corev1.PullAlways, ""},
		{"auto", corev1.PullNever, corev1.PullNever},
		{"example.com/envoy:1", corev1.PullAlways, corev1.PullAlways},
	} {
		pod := plainPod(map[string]string{annotationTemplates: templateGateway})
		pod.Spec.Containers = []corev1.Container{{Name: ProxyName, Image: string(c.image), ImagePullPolicy: c.policy}}
		after, _, err := newInjector(t, Options{}).Inject(pod, "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := findProxy(after).ImagePullPolicy; got != c.want {
			t.Errorf("image %s with policy %s: policy %q, want %q", c.image, c.policy, got, c.want)
		}
	}
}
