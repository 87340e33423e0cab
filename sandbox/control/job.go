package control

import (
	"context"
	"fmt"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/sandbox/store"
)

// jobBackOff is the pause after the first failed pod; it doubles with each further one (Kubernetes: 10 s, 20 s, ... 6 min).
const jobBackOff = 10 * time.Second

// syncJob runs pods until spec.completions of them succeeded or more than backoffLimit failed.
func (c *Control) syncJob(ctx context.Context, key store.Key) error {
	j := store.Get[*batchv1.Job](c.store(), key.Resource, key.Namespace, key.Name)
	if j == nil {
		return nil
	}
	sel := &metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: string(j.UID)}}
	pods, err := c.ownedPods(j, sel)
	if err != nil {
		return err
	}
	var running []*corev1.Pod
	var succeeded, failed, ready int32
	var lastFailure time.Time
	indexes := map[string]bool{}
	for _, p := range pods {
		switch {
		case p.Status.Phase == corev1.PodSucceeded:
			succeeded++
			indexes[p.Labels[batchv1.JobCompletionIndexAnnotation]] = true
		case p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil:
			failed++
			if t := endOf(p); t.After(lastFailure) {
				lastFailure = t
			}
		default:
			running = append(running, p)
			indexes[p.Labels[batchv1.JobCompletionIndexAnnotation]] = true
			if Ready(p) {
				ready++
			}
		}
	}
	st := j.Status.DeepCopy()
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	if st.StartTime == nil && !*j.Spec.Suspend {
		st.StartTime = &now
	}
	done, limit := jobOver(st), *j.Spec.BackoffLimit
	restarts := int32(0)
	for _, p := range running {
		for _, cs := range p.Status.ContainerStatuses {
			restarts += cs.RestartCount
		}
	}
	completions := int32(1)
	if j.Spec.Completions != nil {
		completions = *j.Spec.Completions
	}
	var failure error
	switch {
	case done:
	case succeeded >= completions:
		st.CompletionTime = &now
		finishJob(st, batchv1.JobComplete, "CompletionsReached", "Reached expected number of succeeded pods")
		c.Event(j, corev1.EventTypeNormal, "Completed", "Job completed")
	case failed > limit || restarts > limit:
		finishJob(st, batchv1.JobFailed, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
		c.Event(j, corev1.EventTypeWarning, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
		for _, p := range running {
			c.delete(p)
		}
	case j.Spec.ActiveDeadlineSeconds != nil && st.StartTime != nil && time.Since(st.StartTime.Time) >= time.Duration(*j.Spec.ActiveDeadlineSeconds)*time.Second:
		finishJob(st, batchv1.JobFailed, "DeadlineExceeded", "Job was active longer than specified deadline")
		for _, p := range running {
			c.delete(p)
		}
	case !*j.Spec.Suspend:
		failure = c.startJobPods(ctx, j, key, running, indexes, succeeded, failed, completions, lastFailure)
	}
	st.Active, st.Succeeded, st.Failed, st.Ready = int32(len(running)), succeeded, failed, &ready
	if err := c.status(j, func(o store.Object) { o.(*batchv1.Job).Status = *st }); err != nil {
		return err
	}
	return failure
}

func (c *Control) startJobPods(ctx context.Context, j *batchv1.Job, key store.Key, running []*corev1.Pod, indexes map[string]bool, succeeded, failed, completions int32, lastFailure time.Time) error {
	if j.Spec.ActiveDeadlineSeconds != nil {
		c.queue.AddAfter(key, time.Duration(*j.Spec.ActiveDeadlineSeconds)*time.Second)
	}
	if failed > 0 {
		pause := jobBackOff << min(failed-1, 5)
		if wait := time.Until(lastFailure.Add(pause)); wait > 0 {
			c.queue.AddAfter(key, wait)
			return nil
		}
	}
	missing := min(*j.Spec.Parallelism, completions-succeeded) - int32(len(running))
	index := 0
	for ; missing > 0; missing-- {
		err := c.createPod(ctx, j, "", &j.Spec.Template, func(p *corev1.Pod) {
			p.Labels[batchv1.ControllerUidLabel] = string(j.UID)
			p.Labels[batchv1.JobNameLabel] = j.Name
			p.Labels["job-name"] = j.Name
			p.Labels["controller-uid"] = string(j.UID)
			if j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion {
				for indexes[strconv.Itoa(index)] {
					index++
				}
				n := strconv.Itoa(index)
				indexes[n] = true
				p.Labels[batchv1.JobCompletionIndexAnnotation] = n
				p.Annotations[batchv1.JobCompletionIndexAnnotation] = n
				p.Spec.Hostname = fmt.Sprintf("%s-%s", j.Name, n)
				for i := range p.Spec.Containers {
					p.Spec.Containers[i].Env = append(p.Spec.Containers[i].Env, corev1.EnvVar{Name: "JOB_COMPLETION_INDEX", Value: n})
				}
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func jobOver(st *batchv1.JobStatus) bool {
	for _, c := range st.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func finishJob(st *batchv1.JobStatus, t batchv1.JobConditionType, reason, message string) {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	st.Conditions = append(st.Conditions, batchv1.JobCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastProbeTime: now, LastTransitionTime: now})
}

// endOf is when the last container of a pod ended; the pod's creation when none has.
func endOf(p *corev1.Pod) time.Time {
	at := p.CreationTimestamp.Time
	for _, cs := range p.Status.ContainerStatuses {
		if t := cs.State.Terminated; t != nil && t.FinishedAt.After(at) {
			at = t.FinishedAt.Time
		}
	}
	return at
}
