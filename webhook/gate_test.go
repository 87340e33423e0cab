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

func newNode(name string) mesh.Node {
	return mesh.Node{Name: name, OS: "linux", StartGate: mesh.GateHook}
}

func TestOneOldNodeTurnsTheHookOff(t *testing.T) {
	old, other, windows := newNode("old"), newNode("other"), newNode("windows")
	old.StartGate, other.StartGate, windows.OS, windows.StartGate = "", "probe", "windows", ""
	for _, c := range []struct {
		name  string
		nodes []mesh.Node
		want  []string
	}{
		{"all new", []mesh.Node{newNode("a"), newNode("b")}, nil},
		{"one old", []mesh.Node{newNode("a"), old}, []string{"node old lacks the annotation weft.dev/start-gate: hook", "node agent is missing or older", "spec.nodeName=old"}},
		{"one that says something else", []mesh.Node{other, newNode("a")}, []string{"node other"}},
		{"an old one where no proxy runs", []mesh.Node{newNode("a"), windows}, nil},
		{"one without a proxy alone", []mesh.Node{windows}, []string{"no node is known"}},
		{"none", nil, []string{"no node is known"}},
	} {
		got := AllHold(c.nodes)
		if (got == "") != (len(c.want) == 0) {
			t.Errorf("%s: %q", c.name, got)
		}
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q does not say %q", c.name, got, want)
			}
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
		holds      func() bool
		annotation string
		want       string
	}{
		{"auto, every node", "", yes, "", "hook"},
		{"auto, an old node", "", no, "", "probe"},
		{"auto, nothing known of nodes", "", nil, "", "probe"},
		{"hook by the mesh", GateHook, no, "", "hook"},
		{"probe by the mesh", GateProbe, yes, "", "probe"},
		{"the pod says probe", GateHook, yes, "probe", "probe"},
		{"the pod says hook", GateProbe, no, "hook", "hook"},
		{"the pod says auto", GateProbe, yes, "auto", "hook"},
	} {
		for _, template := range []string{templateSidecar, templateGateway} {
			in := newInjector(t, Options{StartGate: c.mesh, NodesHold: c.holds})
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
	holds := true
	in := newInjector(t, Options{NodesHold: func() bool { return holds }})
	for _, first := range []bool{true, false} {
		holds = first
		once, _, err := in.Inject(plainPod(nil), "default", nil)
		if err != nil {
			t.Fatal(err)
		}
		holds = !first
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
	holds := NodeGate(func() []mesh.Node { return nodes }, slog.New(slog.NewTextHandler(&log, nil)))
	if !holds() {
		t.Fatal("all nodes hold the hook's request, and the hook is off")
	}
	old := newNode("old")
	old.StartGate = ""
	nodes = append(nodes, old)
	for deadline := time.Now().Add(30 * time.Second); holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("an old node came, and the hook is on 30 s later")
		}
	}
	if !strings.Contains(log.String(), "node old lacks the annotation") {
		t.Errorf("the log does not say which node: %s", log.String())
	}
}
