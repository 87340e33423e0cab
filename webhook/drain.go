package webhook

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// defaultTerminationDrain is Istio's (ProxyConfig.terminationDrainDuration).
const defaultTerminationDrain = 5 * time.Second

// preStop keeps a proxy running for ProxyConfig.terminationDrainDuration after its pod was told to stop, or as long as the app
// needs, whichever is longer: kubelet starts the hooks of all containers at once, and signals a sidecar when its hook is done and the app is gone
// (pkg/kubelet/kuberuntime: killContainer). Until every client has learned that the endpoint is gone, somebody must be there to tell
// the late ones that their request was not delivered. An app that exits at once would otherwise take the proxy along, with
// requests under way.
//
// It is nil for zero, for pods that may run to completion, which nobody sends requests to and whose end others wait for, and for
// pods whose grace leaves no second for it.
func (j *injection) preStop() (any, error) {
	d := defaultTerminationDrain
	if set := j.pc.GetTerminationDrainDuration(); set != nil {
		d = set.AsDuration()
	}
	if d < 0 || d > time.Hour {
		return nil, fmt.Errorf("ProxyConfig.terminationDrainDuration: %s is out of range, want 0s to 1h", d)
	}
	if p := j.pod.Spec.RestartPolicy; p != "" && p != corev1.RestartPolicyAlways {
		return nil, nil
	}
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if g := j.pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	// The API takes whole seconds, and what the hook uses up is missing from the grace.
	seconds := min(int64((d+time.Second-1)/time.Second), grace-1)
	if seconds < 1 {
		return nil, nil
	}
	return &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: seconds}}, nil
}
