package pod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// status is the pod's status as of now. w.mu is held.
func (w *worker) status() corev1.PodStatus {
	s := corev1.PodStatus{
		Phase:     w.phase(),
		Reason:    w.failure,
		Message:   w.message,
		StartTime: &metav1.Time{Time: w.startTime},
		QOSClass:  qosClass(w.pod),
	}
	for _, ip := range w.hostIPs() {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(s.HostIPs) > 0 {
		s.HostIP = s.HostIPs[0].IP
	}
	for _, ip := range w.ips {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
	s.PodIP = first(w.ips)
	for _, c := range w.inits {
		s.InitContainerStatuses = append(s.InitContainerStatuses, c.status())
	}
	for _, c := range w.containers {
		s.ContainerStatuses = append(s.ContainerStatuses, c.status())
	}
	s.Conditions = w.conditions(s.Phase)
	return s
}

// status is one container's. w.mu is held.
func (c *container) status() corev1.ContainerStatus {
	started := c.started
	s := corev1.ContainerStatus{
		Name:                 c.spec.Name,
		State:                *c.state.DeepCopy(),
		LastTerminationState: *c.last.DeepCopy(),
		Ready:                c.isReady(),
		Started:              &started,
		RestartCount:         c.restarts,
		Image:                c.spec.Image,
		ContainerID:          c.id,
	}
	if c.current != nil && len(c.current.spec.Argv) > 0 {
		// There is no digest; the program that stands for the image is what one would like to know.
		s.ImageID = "weft://" + c.current.spec.Argv[0]
	}
	return s
}

// isReady: an ordinary init container is ready when it has done its work.
func (c *container) isReady() bool {
	if c.init && !c.sidecar {
		return c.state.Terminated != nil && c.state.Terminated.ExitCode == 0
	}
	return c.state.Running != nil && c.started && c.ready
}

// phase follows kubelet's getPhase.
func (w *worker) phase() corev1.PodPhase {
	if w.failure != "" {
		return corev1.PodFailed
	}
	policy := w.pod.Spec.RestartPolicy
	for _, c := range w.inits {
		t := c.state.Terminated
		switch {
		case c.sidecar && c.started, c.sidecar && w.begun():
		case !c.sidecar && t != nil && t.ExitCode == 0:
		case !c.sidecar && t != nil && policy == corev1.RestartPolicyNever:
			return corev1.PodFailed
		default:
			return corev1.PodPending
		}
	}
	var running, waitingNew, ended, succeeded int
	for _, c := range w.containers {
		switch {
		case c.state.Running != nil:
			running++
		case c.state.Terminated != nil:
			ended++
			if c.state.Terminated.ExitCode == 0 {
				succeeded++
			}
		case c.last.Terminated != nil:
			// In back-off.
			ended++
			running++
		default:
			waitingNew++
		}
	}
	switch {
	case waitingNew > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case !w.allOver() && w.ctx.Err() == nil:
		// Between an end and the restart that follows.
		return corev1.PodRunning
	case succeeded == ended && policy != corev1.RestartPolicyAlways:
		return corev1.PodSucceeded
	case policy != corev1.RestartPolicyAlways || w.allOver():
		if succeeded == ended {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	}
	return corev1.PodRunning
}

// begun says whether an ordinary container has been started.
func (w *worker) begun() bool {
	for _, c := range w.containers {
		if c.begun {
			return true
		}
	}
	return false
}

func (w *worker) allOver() bool {
	for _, c := range w.containers {
		select {
		case <-c.over:
		default:
			return false
		}
	}
	return true
}

// conditions follow kubelet's GeneratePod*Condition functions.
func (w *worker) conditions(phase corev1.PodPhase) []corev1.PodCondition {
	done := phase == corev1.PodSucceeded
	var pending, unready []string
	for _, c := range w.inits {
		switch {
		case c.sidecar && !c.started && !w.begun(), !c.sidecar && !c.isReady():
			pending = append(pending, c.spec.Name)
		}
		if c.sidecar && !c.isReady() {
			unready = append(unready, c.spec.Name)
		}
	}
	for _, c := range w.containers {
		if !c.isReady() {
			unready = append(unready, c.spec.Name)
		}
	}
	initialised := condition(corev1.PodInitialized, len(pending) == 0 || done, "ContainersNotInitialized", "containers with incomplete status: "+list(pending))
	if done {
		initialised.Reason = "PodCompleted"
	}
	containers := condition(corev1.ContainersReady, len(unready) == 0 && !done, "ContainersNotReady", "containers with unready status: "+list(unready))
	switch {
	case done:
		containers.Reason, containers.Message = "PodCompleted", ""
	case phase == corev1.PodFailed:
		containers.Status, containers.Reason, containers.Message = corev1.ConditionFalse, "PodFailed", ""
	}
	ready := containers
	ready.Type = corev1.PodReady
	for _, gate := range w.pod.Spec.ReadinessGates {
		if containers.Status == corev1.ConditionTrue && !gateOpen(w.latest.Load(), gate.ConditionType) {
			ready.Status, ready.Reason = corev1.ConditionFalse, "ReadinessGatesNotReady"
			ready.Message = fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType)
		}
	}
	out := []corev1.PodCondition{
		condition(corev1.PodReadyToStartContainers, w.sandbox != nil, "", ""),
		initialised, ready, containers,
		condition(corev1.PodScheduled, true, "", ""),
	}
	now := metav1.Now()
	for i := range out {
		out[i].LastTransitionTime = now
		for _, old := range w.told.Conditions {
			if old.Type == out[i].Type && old.Status == out[i].Status {
				out[i].LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	return out
}

func gateOpen(pod *corev1.Pod, kind corev1.PodConditionType) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// condition has a reason and a message only while it is not met.
func condition(kind corev1.PodConditionType, met bool, reason, message string) corev1.PodCondition {
	if met {
		return corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue}
	}
	return corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message}
}

func list(names []string) string { return "[" + strings.Join(names, " ") + "]" }

// qosClass follows Kubernetes' rules (Kubernetes API: PodQOSClass).
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	any, guaranteed := false, true
	for _, c := range append(append([]corev1.Container(nil), pod.Spec.InitContainers...), pod.Spec.Containers...) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, limited := positive(c.Resources.Limits, name)
			request, requested := positive(c.Resources.Requests, name)
			any = any || limited || requested
			if !limited || requested && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func positive(l corev1.ResourceList, name corev1.ResourceName) (resource.Quantity, bool) {
	q, ok := l[name]
	return q, ok && q.Sign() > 0
}
