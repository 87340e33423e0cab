package admission

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/redirect"
)

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// One API server serves all: it takes seconds to start.
func TestPodsBehindARealAPIServer(t *testing.T) {
	c := newCluster(t)
	for _, s := range []struct {
		name string
		test func(*testing.T, *cluster)
	}{
		{"a pod of a labelled namespace is stored with its proxy, others never reach the webhook", labelsDecide},
		{"a dry run shows the proxy and stores nothing", dryRun},
		{"restricted namespaces admit what is injected", restricted},
		{"a pod without a name gets one", generatedName},
		{"the pod of a Job", jobPod},
		{"a pod with a user namespace", userNamespace},
		{"a gateway", gateway},
		{"the user's part of the proxy", userOverride},
		{"kubectl debug adds a container to an injected pod", ephemeralContainer},
		{"server-side apply of the same manifest changes nothing", serverSideApply},
		{"what another webhook adds later is injected too", reinvocation},
		{"another webhook changes the proxy", otherChangesProxy},
		{"a mistake is denied with annotation, value and remedy", mistake},
		{"warnings reach the user", warned},
		{"the control plane is away: refused where injection is on, and only there", away}, // the last: it is not put back
	} {
		t.Run(s.name, func(t *testing.T) { s.test(t, c) })
	}
}

func labelsDecide(t *testing.T, c *cluster) {
	pod := c.mustCreate(t, "on", plainPod("web"))
	p := proxyOf(pod)
	if p == nil {
		t.Fatalf("no proxy, or two: %+v", pod.Spec)
	}
	if p.Lifecycle == nil || p.Lifecycle.PostStart == nil || p.StartupProbe != nil || p.ReadinessProbe == nil {
		t.Errorf("the hook holds nobody back: %+v", p)
	}
	if h := p.Lifecycle.PostStart.HTTPGet; h == nil || h.Host != "" || h.Port.IntValue() != redirect.PortProof {
		t.Errorf("the hook asks %+v, want the pod itself at port %d: Pod Security allows no other host", p.Lifecycle.PostStart, redirect.PortProof)
	}
	before := c.calls.Load()
	if out := c.mustCreate(t, "off", plainPod("web")); proxyOf(out) != nil {
		t.Error("a proxy in a namespace without a label")
	}
	optedOut := plainPod("opted-out")
	optedOut.Labels["sidecar.istio.io/inject"] = "false"
	if out := c.mustCreate(t, "on", optedOut); proxyOf(out) != nil {
		t.Error("a proxy in a pod that opted out")
	}
	if calls := c.calls.Load() - before; calls != 0 {
		t.Errorf("%d calls for pods that the webhook has nothing to do with: they would not start without the control plane", calls)
	}
	optedIn := plainPod("opted-in")
	optedIn.Labels["sidecar.istio.io/inject"] = "true"
	if out := c.mustCreate(t, "off", optedIn); proxyOf(out) == nil {
		t.Error("no proxy in a pod that opted in")
	}
}

func dryRun(t *testing.T, c *cluster) {
	pod, err := c.create("on", plainPod("dry"), metav1.DryRunAll)
	if err != nil || proxyOf(pod) == nil {
		t.Fatalf("%v, %v", pod, err)
	}
	if _, err := c.client.CoreV1().Pods("on").Get(t.Context(), "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a dry run was stored: %v", err)
	}
}

func restricted(t *testing.T, c *cluster) {
	for _, gate := range []string{"hook", "probe"} {
		for _, template := range []string{"sidecar", "gateway"} {
			pod := restrictedPod(gate + "-" + template)
			pod.Annotations = map[string]string{"weft.dev/start-gate": gate, "inject.istio.io/templates": template}
			if proxyOf(c.mustCreate(t, "restricted", pod)) == nil {
				t.Errorf("%s: no proxy", pod.Name)
			}
		}
	}
	_, err := c.create("restricted", plainPod("careless"), metav1.DryRunAll)
	if err == nil || strings.Contains(err.Error(), "istio-proxy") || !strings.Contains(err.Error(), `"app"`) {
		t.Errorf("an app that is not restricted: want it refused, with nothing said of the proxy; got %v", err)
	}
}

func generatedName(t *testing.T, c *cluster) {
	pod := plainPod("")
	pod.GenerateName, pod.Labels["app"] = "batch-", "batch"
	made := c.mustCreate(t, "on", pod)
	if proxyOf(made) == nil || !strings.HasPrefix(made.Name, "batch-") {
		t.Errorf("%s: %+v", made.Name, made.Spec.InitContainers)
	}
}

func jobPod(t *testing.T, c *cluster) {
	pod, yes := plainPod(""), true
	pod.GenerateName = "nightly-29384756-"
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: "nightly-29384756", UID: "b4a2", Controller: &yes, BlockOwnerDeletion: &yes}}
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	made := c.mustCreate(t, "on", pod)
	p := proxyOf(made)
	if p == nil || p.RestartPolicy == nil || *p.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Fatalf("the proxy of a Job must be a native sidecar, or the Job never ends: %+v", p)
	}
	if p.Lifecycle.PreStop != nil {
		t.Errorf("the end of a Job waits for %+v", p.Lifecycle.PreStop)
	}
	if !strings.Contains(strings.Join(p.Args, " "), "cronjobs/nightly") {
		t.Error("the proxy does not know its CronJob")
	}
}

func userNamespace(t *testing.T, c *cluster) {
	pod, no := restrictedPod("user-namespace"), false
	pod.Spec.HostUsers = &no
	made := c.mustCreate(t, "restricted", pod)
	if proxyOf(made) == nil || made.Spec.HostUsers == nil || *made.Spec.HostUsers {
		t.Errorf("%+v", made.Spec)
	}
}

func gateway(t *testing.T, c *cluster) {
	pod := plainPod("gateway")
	pod.Annotations = map[string]string{"inject.istio.io/templates": "gateway"}
	pod.Labels["sidecar.istio.io/inject"] = "true"
	pod.Spec.Containers = []corev1.Container{{Name: "istio-proxy", Image: "auto"}}
	made := c.mustCreate(t, "istio-system", pod)
	p := proxyOf(made)
	if p != nil && p.ImagePullPolicy == corev1.PullAlways {
		t.Error("the image is pulled at every start: the API server's default for the image auto, which has no tag, was taken for the user's")
	}
	if p == nil || p.Image == "auto" || len(made.Spec.InitContainers) > 0 || made.Annotations["weft.dev/redirect"] != "" {
		t.Errorf("%+v", made.Spec)
	}
}

func userOverride(t *testing.T, c *cluster) {
	pod := plainPod("override")
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "istio-proxy", Image: "auto", Env: []corev1.EnvVar{{Name: "MINE", Value: "x"}}})
	p := proxyOf(c.mustCreate(t, "on", pod))
	if p == nil || !slices.ContainsFunc(p.Env, func(e corev1.EnvVar) bool { return e.Name == "MINE" && e.Value == "x" }) {
		t.Errorf("%+v", p)
	}
}

func ephemeralContainer(t *testing.T, c *cluster) {
	made := c.mustCreate(t, "on", plainPod("debugged"))
	before := c.calls.Load()
	made.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debugger", Image: "debug:1"}}}
	after, err := c.client.CoreV1().Pods("on").UpdateEphemeralContainers(t.Context(), made.Name, made, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Spec.EphemeralContainers) != 1 || proxyOf(after) == nil {
		t.Errorf("%+v", after.Spec)
	}
	if calls := c.calls.Load() - before; calls != 0 {
		t.Errorf("%d calls: kubectl debug would not work without the control plane", calls)
	}
}

func serverSideApply(t *testing.T, c *cluster) {
	pod := plainPod("applied")
	pod.APIVersion, pod.Kind = "v1", "Pod"
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	apply := func() *corev1.Pod {
		out, err := c.client.CoreV1().Pods("on").Patch(t.Context(), pod.Name, types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: "test"})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := apply()
	if proxyOf(first) == nil {
		t.Fatal("no proxy")
	}
	if d := cmp.Diff(first, apply()); d != "" {
		t.Errorf("the second apply changed the pod:\n%s", d)
	}
}

// reinvocation: a webhook that comes after ours by name adds a container whose probe goes to the app's own port, which STRICT mutual TLS would
// refuse. Kubernetes calls ours again (reinvocationPolicy IfNeeded).
func reinvocation(t *testing.T, c *cluster) {
	probe := corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/live", Port: intstr.FromInt32(9000)}}}
	c.other(t, "zz-late", func(pod *corev1.Pod) []map[string]any {
		if container(pod, "late") != nil {
			return []map[string]any{}
		}
		return []map[string]any{{"op": "add", "path": "/spec/containers/-", "value": corev1.Container{Name: "late", Image: "late:1", LivenessProbe: &probe}}}
	})
	pod := plainPod("reinvoked")
	pod.Labels["other"] = "zz-late"
	eventually(t, "the other webhook is called", func() bool {
		made, err := c.create("on", pod, metav1.DryRunAll)
		return err == nil && container(made, "late") != nil
	})
	made := c.mustCreate(t, "on", pod)
	late, p := container(made, "late"), proxyOf(made)
	if p == nil || late == nil {
		t.Fatalf("%+v", made.Spec)
	}
	if got := late.LivenessProbe.HTTPGet; got.Port.IntValue() != 15020 || got.Path != "/app-health/late/livez" {
		t.Errorf("the late container's probe is asked at %v%s, past the proxy", got.Port.String(), got.Path)
	}
	if made.Spec.InitContainers[0].Name != "istio-proxy" || p.Lifecycle.PostStart == nil || p.StartupProbe != nil {
		t.Errorf("the second call changed the start gate: %+v", p)
	}
}

func otherChangesProxy(t *testing.T, c *cluster) {
	c.other(t, "zz-env", func(pod *corev1.Pod) []map[string]any {
		out := []map[string]any{}
		for list, containers := range map[string][]corev1.Container{"initContainers": pod.Spec.InitContainers, "containers": pod.Spec.Containers} {
			for i := range containers {
				if containers[i].Env == nil {
					out = append(out, map[string]any{"op": "add", "path": fmt.Sprintf("/spec/%s/%d/env", list, i), "value": []corev1.EnvVar{}})
				}
				if !slices.ContainsFunc(containers[i].Env, func(e corev1.EnvVar) bool { return e.Name == "REGION" }) {
					out = append(out, map[string]any{"op": "add", "path": fmt.Sprintf("/spec/%s/%d/env/-", list, i), "value": corev1.EnvVar{Name: "REGION", Value: "eu"}})
				}
			}
		}
		return out
	})
	pod := plainPod("changed")
	pod.Labels["other"] = "zz-env"
	hasRegion := func(c *corev1.Container) bool {
		return c != nil && slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "REGION" && e.Value == "eu" })
	}
	eventually(t, "the other webhook is called", func() bool {
		made, err := c.create("on", pod, metav1.DryRunAll)
		return err == nil && hasRegion(container(made, "app"))
	})
	made := c.mustCreate(t, "on", pod)
	if proxyOf(made) == nil || !hasRegion(container(made, "app")) {
		t.Errorf("%+v", made.Spec)
	}
}

func mistake(t *testing.T, c *cluster) {
	pod := plainPod("mistaken")
	pod.Annotations = map[string]string{"sidecar.istio.io/proxyCPU": "lots", "weft.dev/start-gate": "never"}
	_, err := c.create("on", pod)
	for _, want := range []string{"denied the request", "pod on/mistaken", "sidecar.istio.io/proxyCPU", `"lots"`, "100m", "weft.dev/start-gate", "want auto, hook or probe"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func warned(t *testing.T, c *cluster) {
	pod := plainPod("warned")
	pod.Annotations = map[string]string{"sidecar.istio.io/agentLogLevel": "debug"}
	c.warnings.take()
	c.mustCreate(t, "on", pod)
	if seen := c.warnings.take(); !slices.ContainsFunc(seen, func(s string) bool { return strings.Contains(s, "sidecar.istio.io/agentLogLevel has no effect") }) {
		t.Errorf("the user was told %q", seen)
	}
}

func away(t *testing.T, c *cluster) {
	c.ours.CloseClientConnections()
	c.ours.Close()
	began := time.Now()
	_, err := c.create("on", plainPod("refused"))
	if err == nil || !strings.Contains(err.Error(), "sidecar-injector.istio.io") || !strings.Contains(err.Error(), "failed calling webhook") {
		t.Errorf("a pod without its proxy speaks past all policies, so it must be refused, and the message must say by whom: %v", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the refusal took %v", took)
	}
	c.mustCreate(t, "off", plainPod("goes-on"))
}
