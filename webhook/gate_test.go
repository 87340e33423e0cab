package webhook

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/redirect"
)

func TestImagesAreMountedOnlyWhereTheyCanBe(t *testing.T) {
	for _, c := range []struct {
		kubelet, runtime string
		want             string // in the reason; "" for yes
	}{
		{"v1.36.3", "containerd://2.1.0", ""},
		{"v1.37.1", "containerd://2.4.2+unknown", ""},
		{"v1.36.0+k3s1", "containerd://2.1.3-k3s1", ""},
		{"v1.36.1-eks-3025e55", "containerd://2.1.5", ""},
		{"v2.0.0", "containerd://10.0.0", ""},
		{"v1.36.3", "cri-o://1.36.0", ""},
		{"v1.36.3", "containerd://1.6.20~ds1", "containerd 1.6.20~ds1; image volumes need 2.1"},
		{"v1.36.3", "containerd://2.0.9", "image volumes need 2.1"},
		{"v1.36.3", "cri-o://1.32.4", "image volumes need 1.33"},
		{"v1.35.4", "containerd://2.4.2", "kubelet v1.35.4; image volumes need 1.36"},
		{"v1.36.3", "docker://28.0.1", "container runtime docker://28.0.1"},
		{"v1.36.3", "weft-sandbox://1", "container runtime weft-sandbox://1"},
		{"v1.36.3", "containerd://Unknown", "image volumes need 2.1"},
		{"v1.36.3", "", "container runtime"},
		{"", "containerd://2.1.0", "kubelet"},
		{"v1.99999999999999999999.0", "containerd://2.1.0", "kubelet"},
	} {
		got := MountsImages(mesh.Node{Name: "n1", Kubelet: c.kubelet, Runtime: c.runtime, OS: "linux"})
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) || got != "" && !strings.Contains(got, "node n1") {
			t.Errorf("kubelet %q, runtime %q: %q, want %q", c.kubelet, c.runtime, got, c.want)
		}
	}
}

func newNode(name string) mesh.Node {
	return mesh.Node{Name: name, OS: "linux", Kubelet: "v1.36.3", Runtime: "containerd://2.1.4"}
}

func TestOneOldNodeTurnsTheHookOff(t *testing.T) {
	old, windows := newNode("old"), newNode("windows")
	old.Runtime, windows.OS, windows.Runtime = "containerd://1.7.28", "windows", "containerd://1.7.28"
	for _, c := range []struct {
		name  string
		nodes []mesh.Node
		want  string
	}{
		{"all new", []mesh.Node{newNode("a"), newNode("b")}, ""},
		{"one old", []mesh.Node{newNode("a"), old}, "node old has containerd 1.7.28"},
		{"an old one where no proxy runs", []mesh.Node{newNode("a"), windows}, ""},
		{"none", nil, "no node is known"},
	} {
		if got := AllMountImages(c.nodes); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// gateOf says what holds a pod back: "hook", "probe", "both" or "none".
func gateOf(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	c := findProxy(pod)
	hook := c.Lifecycle != nil && c.Lifecycle.PostStart != nil
	if told := redirectOf(t, pod).Gate != 0; hook != told {
		t.Errorf("the pod has a hook: %v, and its node is told of one: %v", hook, told)
	}
	switch probe := c.StartupProbe != nil; {
	case hook && probe:
		return "both"
	case hook:
		return "hook"
	case probe:
		return "probe"
	}
	return "none"
}

// redirectOf is what the pod's node is told; the zero Spec if nothing is redirected.
func redirectOf(t *testing.T, pod *corev1.Pod) redirect.Spec {
	t.Helper()
	text, ok := pod.Annotations[redirect.Annotation]
	if !ok {
		return redirect.Spec{}
	}
	spec, err := redirect.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestWhatHoldsAPodBack(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	for _, c := range []struct {
		name       string
		mesh       StartGate
		images     func() bool
		annotation string
		want       string
	}{
		{"auto, images everywhere", "", yes, "", "hook"},
		{"auto, an old node", "", no, "", "probe"},
		{"auto, nothing known of nodes", "", nil, "", "probe"},
		{"hook by the mesh", GateHook, no, "", "hook"},
		{"probe by the mesh", GateProbe, yes, "", "probe"},
		{"the pod says probe", GateHook, yes, "probe", "probe"},
		{"the pod says hook", GateProbe, no, "hook", "hook"},
		{"the pod says auto", GateProbe, yes, "auto", "hook"},
	} {
		for _, template := range []string{templateSidecar, templateGateway} {
			in := newInjector(t, Options{StartGate: c.mesh, ImageVolumes: c.images})
			annotations := map[string]string{annotationTemplates: template}
			if c.annotation != "" {
				annotations[annStartGate] = c.annotation
			}
			after, warnings, err := in.Inject(plainPod(annotations), "default", nil)
			if useless := template == templateGateway && c.annotation == "hook"; err != nil || len(warnings) > 0 != useless {
				t.Fatalf("%s, %s: %v, %v", c.name, template, warnings, err)
			}
			want := c.want
			if template == templateGateway { // nothing of its pod waits, and nothing would hold the hook's request
				want = "probe"
			}
			if got := gateOf(t, after); got != want {
				t.Errorf("%s, %s: %s holds the pod back, want %s", c.name, template, got, want)
			}
			if findProxy(after).ReadinessProbe == nil {
				t.Errorf("%s, %s: no readiness probe: a kubelet that restarts during the hook forgets it", c.name, template)
			}
		}
	}
}

func TestTheHookAsksWhatTheStartupProbeAsks(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		health      uint16
	}{
		{nil, redirect.PortHealth},
		{map[string]string{annStatusPort: "15029"}, 15029},
		{map[string]string{annStatusPort: "0"}, redirect.PortHealth}, // no readiness probe
		{map[string]string{"sidecar.istio.io/interceptionMode": "TPROXY"}, redirect.PortHealth},
	} {
		probed, _, err := newInjector(t, Options{StartGate: GateProbe}).Inject(plainPod(c.annotations), "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		hooked, _, err := newInjector(t, Options{StartGate: GateHook}).Inject(plainPod(c.annotations), "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		want := findProxy(probed).StartupProbe.HTTPGet
		if got := findProxy(hooked).Lifecycle.PostStart.HTTPGet; got.Path != want.Path || got.Port != want.Port || got.Port.IntValue() != redirect.PortProof {
			t.Errorf("%v: the hook asks %v, and the startup probe %v", c.annotations, got, want)
		}
		// Pod Security "baseline" refuses hooks and probes that name a host.
		if host := findProxy(hooked).Lifecycle.PostStart.HTTPGet.Host; host != "" {
			t.Errorf("%v: the hook names the host %q", c.annotations, host)
		}
		if got := redirectOf(t, hooked).Gate; got != c.health {
			t.Errorf("%v: the node is told that the proxy's health is on port %d, want %d", c.annotations, got, c.health)
		}
	}
}

func TestAPodThatIsNotRedirectedHasNoHook(t *testing.T) {
	for _, said := range []bool{false, true} {
		annotations := map[string]string{"sidecar.istio.io/interceptionMode": "NONE", annStatusPort: "15029"}
		if said {
			annotations[annStartGate] = "hook"
		}
		pod, warnings, err := newInjector(t, Options{StartGate: GateHook}).Inject(plainPod(annotations), "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := gateOf(t, pod); got != "probe" || findProxy(pod).StartupProbe.HTTPGet.Port.IntValue() != 15029 {
			t.Errorf("%s holds the pod back, and the startup probe is %v", got, findProxy(pod).StartupProbe)
		}
		if told := strings.Contains(strings.Join(warnings, "\n"), annStartGate); told != said {
			t.Errorf("a pod that asks for the hook: %v, and the warnings: %q", said, warnings)
		}
	}
}

// Kubernetes: a webhook may be called again, after others have changed the pod. By then the nodes may be others.
func TestAPodKeepsTheGateThatItWasGiven(t *testing.T) {
	images := true
	in := newInjector(t, Options{ImageVolumes: func() bool { return images }})
	for _, first := range []bool{true, false} {
		images = first
		once, _, err := in.Inject(plainPod(nil), "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		images = !first
		twice, _, err := in.Inject(once, "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := gateOf(t, once), gateOf(t, twice); a != b {
			t.Errorf("held back by %s at first, and by %s after the second call", a, b)
		}
		if patch, err := podPatch(once, twice); err != nil || patch != nil {
			t.Errorf("the second call changes the pod: %s, %v", patch, err)
		}
	}
}

func TestAnAnnotationThatSomebodyBrokeIsNamed(t *testing.T) {
	in := newInjector(t, Options{StartGate: GateHook})
	pod, _, err := in.Inject(plainPod(nil), "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	pod.Annotations[redirect.Annotation] = `{"mode":"SIDEWAYS"}`
	if _, _, err = in.Inject(pod, "default", nil); err == nil || !strings.Contains(err.Error(), "annotation "+redirect.Annotation) || !strings.Contains(err.Error(), "SIDEWAYS") {
		t.Errorf("injected again: %v", err)
	}
}

func TestNodesThatComeAndGoAreNoticed(t *testing.T) {
	var log bytes.Buffer
	nodes := []mesh.Node{newNode("a")}
	images := NodeGate(func() []mesh.Node { return nodes }, slog.New(slog.NewTextHandler(&log, nil)))
	if !images() {
		t.Fatal("all nodes mount images, and the hook is off")
	}
	old := newNode("old")
	old.Runtime = "containerd://1.6.20"
	nodes = append(nodes, old)
	for deadline := time.Now().Add(10 * time.Second); images(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("an old node came, and the hook is on 10 s later")
		}
	}
	if !strings.Contains(log.String(), "node old has containerd 1.6.20") {
		t.Errorf("the log does not say which node: %s", log.String())
	}
}
