package webhook

import (
	"fmt"
	"log/slog"
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
	// GateAuto takes the hook when every node holds its request (see AllHold), and the startup probe otherwise.
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
		if j.in.o.NodesHold != nil && j.in.o.NodesHold() {
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

// AllHold says whether every Linux node holds the hook's request, since nobody knows yet where a pod will go; reason is empty, or names a
// node that does not, and the remedy.
func AllHold(nodes []mesh.Node) (reason string) {
	seen := false
	for _, n := range nodes {
		if n.OS == string(corev1.Windows) { // where no proxy runs
			continue
		}
		if n.StartGate != mesh.GateHook {
			return fmt.Sprintf("node %s lacks the annotation %s: %s: its node agent is missing or older than this, or its kernel lacks nftables' or iptables' socket match, which the agent's log says; "+
				"see kubectl get pods -A -o wide -l k8s-app=istio-cni-node --field-selector spec.nodeName=%s", n.Name, mesh.NodeStartGate, mesh.GateHook, n.Name)
		}
		seen = true
	}
	if !seen {
		return "no node is known"
	}
	return ""
}

// NodeGate is for Options.NodesHold: AllHold of what nodes lists, looked at again when a second has passed. A change is
// logged, with the node that prevents the hook.
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
			reason, looked = AllHold(nodes()), now
			switch {
			case reason == "" && (first || before != ""):
				log.Info("pods are held back by the postStart hook: every node holds its request until the proxy is ready")
			case reason != "" && (first || before == ""):
				log.Info("pods are held back by a startup probe, which costs each a second", "because", reason)
			}
		}
		return reason == ""
	}
}
