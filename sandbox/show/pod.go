package show

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// PodRow is what "get pods" says about a pod. Source: Kubernetes pkg/printers/internalversion printPod.
type PodRow struct {
	Ready    string // "2/2": ready containers, restartable init containers (sidecars) counted
	Status   string // "Running", "Init:0/1", "CrashLoopBackOff", ...
	Restarts string // "0", "3 (12s ago)"
}

// Pod computes the row.
func Pod(p *corev1.Pod, now time.Time) PodRow {
	total, readyCount, restarts := len(p.Spec.Containers), 0, int32(0)
	var last time.Time
	reason := string(p.Status.Phase)
	if p.Status.Reason != "" {
		reason = p.Status.Reason
	}
	sidecar := map[string]bool{}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecar[c.Name] = true
			total++
		}
	}
	note := func(cs corev1.ContainerStatus) {
		restarts += cs.RestartCount
		if t := cs.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	initializing := false
	for i, cs := range p.Status.InitContainerStatuses {
		note(cs)
		switch {
		case cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0:
			continue // also a sidecar that ended after its Job
		case sidecar[cs.Name] && cs.Started != nil && *cs.Started:
			if cs.Ready {
				readyCount++
			}
			continue
		case cs.State.Terminated != nil:
			reason = "Init:" + terminated(cs.State.Terminated)
		case cs.State.Waiting != nil && cs.State.Waiting.Reason != "" && cs.State.Waiting.Reason != "PodInitializing":
			reason = "Init:" + cs.State.Waiting.Reason
		default:
			reason = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
		initializing = true
		break
	}
	if !initializing || conditionTrue(p, corev1.PodInitialized) {
		running := false
		for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
			cs := p.Status.ContainerStatuses[i]
			note(cs)
			switch {
			case cs.State.Waiting != nil && cs.State.Waiting.Reason != "":
				reason = cs.State.Waiting.Reason
			case cs.State.Terminated != nil:
				reason = terminated(cs.State.Terminated)
			case cs.Ready && cs.State.Running != nil:
				running = true
				readyCount++
			}
		}
		if reason == "Completed" && running {
			reason = "NotReady"
			if conditionTrue(p, corev1.PodReady) {
				reason = "Running"
			}
		}
	}
	if p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded {
		reason = "Terminating"
	}
	r := fmt.Sprint(restarts)
	if restarts > 0 && !last.IsZero() {
		r += fmt.Sprintf(" (%s ago)", Age(now.Sub(last)))
	}
	return PodRow{Ready: fmt.Sprintf("%d/%d", readyCount, total), Status: reason, Restarts: r}
}

func terminated(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func conditionTrue(p *corev1.Pod, condition corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == condition {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Age prints a duration as kubectl's AGE column does: two units at most, "5m12s", "3h", "12d".
func Age(d time.Duration) string {
	s := int(d.Seconds())
	switch {
	case s < 0:
		return "0s"
	case s < 120:
		return fmt.Sprintf("%ds", s)
	case s < 600:
		return trimZero(fmt.Sprintf("%dm%ds", s/60, s%60), "0s")
	case s < 3*3600:
		return fmt.Sprintf("%dm", s/60)
	case s < 8*3600:
		return trimZero(fmt.Sprintf("%dh%dm", s/3600, s/60%60), "0m")
	case s < 48*3600:
		return fmt.Sprintf("%dh", s/3600)
	case s < 8*86400:
		return trimZero(fmt.Sprintf("%dd%dh", s/86400, s/3600%24), "0h")
	}
	return fmt.Sprintf("%dd", s/86400)
}

// trimZero turns "5m0s" into "5m", but not "5m10s".
func trimZero(s, zero string) string {
	if cut, ok := strings.CutSuffix(s, zero); ok && strings.HasSuffix(cut, string(map[string]byte{"0s": 'm', "0m": 'h', "0h": 'd'}[zero])) {
		return cut
	}
	return s
}
