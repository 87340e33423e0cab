package webhook

import (
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/redirect"
)

// StartGate is what keeps kubelet from starting a pod's own containers before the proxy works. Both wait for the same: the
// redirection proven and the configuration received. Gateways, of which no other container waits, always have the startup probe.
//
// The startup probe works everywhere, and costs each pod a second, kubelet's smallest period. The hook costs what Envoy takes to
// start. kubelet makes one request for it and does not repeat it, so the pod's own rules hold that request instead of refusing it,
// and the node agent answers it (package redirect: Spec.Gate).
type StartGate string

const (
	// GateAuto takes the hook when every node can mount images (see MountsImages), and the startup probe otherwise.
	GateAuto StartGate = "auto"
	// GateHook is a postStart hook.
	GateHook StartGate = "hook"
	// GateProbe is a startup probe.
	GateProbe StartGate = "probe"
)

func parseStartGate(v string) (StartGate, error) {
	switch g := StartGate(v); g {
	case GateAuto, GateHook, GateProbe:
		return g, nil
	}
	return "", fmt.Errorf("want %s, %s or %s", GateAuto, GateHook, GateProbe)
}

const annStartGate = "weft.dev/start-gate"

// gate is what holds this pod back.
func (j *injection) gate() (StartGate, error) {
	if j.gated != "" {
		return j.gated, nil
	}
	if err := j.capture(); err != nil {
		return "", err
	}
	g, err := j.chooseGate()
	j.gated = g
	return g, err
}

func (j *injection) chooseGate() (StartGate, error) {
	// A pod keeps the gate that it was given first: the nodes may have changed between two calls for one pod.
	if j.before != nil {
		return j.gateBefore()
	}
	asked := j.user.startGate
	if asked == "" {
		asked = j.in.o.StartGate
	}
	if asked == GateAuto {
		asked = GateProbe
		if j.in.o.ImageVolumes != nil && j.in.o.ImageVolumes() {
			asked = GateHook
		}
	}
	if asked == GateProbe {
		return GateProbe, nil
	}
	var prevents string
	switch l := j.override.Lifecycle; {
	case j.spec.Mode == redirect.None:
		// Nothing holds a request that no rule knows: a proxy that is still starting would refuse it, and the hook would have failed.
		prevents = "this pod's traffic is not redirected"
	case l != nil && l.PostStart != nil:
		// What users say about the proxy's start wins, and a container cannot have two postStart hooks.
		prevents = "the container " + ProxyName + " has a lifecycle.postStart of its own"
	case j.override.StartupProbe != nil:
		prevents = "the container " + ProxyName + " has a startupProbe of its own"
	default:
		return GateHook, nil
	}
	if j.user.startGate == GateHook {
		j.warnings = append(j.warnings, fmt.Sprintf("annotation %s: hook has no effect: %s, so a startup probe holds the pod back", annStartGate, prevents))
	}
	return GateProbe, nil
}

// gateBefore is the gate that an earlier call gave the pod.
func (j *injection) gateBefore() (StartGate, error) {
	text, ok := j.pod.Annotations[redirect.Annotation]
	if !ok || j.spec.Mode == redirect.None {
		return GateProbe, nil
	}
	spec, err := redirect.Decode(text)
	if err != nil {
		return "", fmt.Errorf("%w; the injector wrote it, and another webhook or a person changed it", err)
	}
	if spec.Gate == 0 {
		return GateProbe, nil
	}
	return GateHook, nil
}

// The least versions that mount images. Kubernetes had the field from 1.31 on behind a feature gate, and cannot be without it since 1.36; an API server that has
// it switched off denies pods with it, which is worse than a slow start.
var (
	leastKubelet    = [2]int{1, 36}
	leastContainerd = [2]int{2, 1}
	leastCRIO       = [2]int{1, 33}
)

var majorMinor = regexp.MustCompile(`^v?(\d+)\.(\d+)(?:\D|$)`)

func atLeast(version string, least [2]int) bool {
	m := majorMinor.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	major, err := strconv.Atoi(m[1])
	if err != nil {
		return false
	}
	minor, err := strconv.Atoi(m[2])
	return err == nil && (major > least[0] || major == least[0] && minor >= least[1])
}

// MountsImages says whether the node can mount image volumes, by its kubelet and its container runtime; reason is empty or says why not, with the
// versions that are needed.
func MountsImages(n mesh.Node) (reason string) {
	runtime, version, _ := strings.Cut(n.Runtime, "://")
	least := map[string][2]int{"containerd": leastContainerd, "cri-o": leastCRIO}
	need, known := least[runtime]
	switch {
	case !atLeast(n.Kubelet, leastKubelet):
		return fmt.Sprintf("node %s has kubelet %s; image volumes need %d.%d", n.Name, n.Kubelet, leastKubelet[0], leastKubelet[1])
	case !known:
		return fmt.Sprintf("node %s has the container runtime %s; image volumes need containerd %d.%d or CRI-O %d.%d",
			n.Name, n.Runtime, leastContainerd[0], leastContainerd[1], leastCRIO[0], leastCRIO[1])
	case !atLeast(version, need):
		return fmt.Sprintf("node %s has %s %s; image volumes need %d.%d", n.Name, runtime, version, need[0], need[1])
	}
	return ""
}

// AllMountImages asks it of all Linux nodes, since nobody knows yet where a pod will go.
func AllMountImages(nodes []mesh.Node) (reason string) {
	seen := false
	for _, n := range nodes {
		if n.OS == string(corev1.Windows) { // where no proxy runs
			continue
		}
		if reason := MountsImages(n); reason != "" {
			return reason
		}
		seen = true
	}
	if !seen {
		return "no node is known"
	}
	return ""
}

// NodeGate is for Options.ImageVolumes: AllMountImages of what nodes lists, looked at again when a second has passed. A
// change is logged, with the node that prevents the hook.
func NodeGate(nodes func() []mesh.Node, log *slog.Logger) func() bool {
	const again = time.Second
	var mu sync.Mutex
	var looked time.Time
	var reason string
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); looked.IsZero() || now.Sub(looked) >= again {
			before, first := reason, looked.IsZero()
			reason, looked = AllMountImages(nodes()), now
			switch {
			case reason == "" && (first || before != ""):
				log.Info("pods are held back by the postStart hook: every node mounts images")
			case reason != "" && (first || before == ""):
				log.Info("pods are held back by a startup probe, which costs each a second", "because", reason)
			}
		}
		return reason == ""
	}
}
