package webhook

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

func TestProxyOutlivesTheSignalButNotTheGrace(t *testing.T) {
	seconds := func(n int64) *int64 { return &n }
	for name, c := range map[string]struct {
		drain  *durationpb.Duration
		grace  *int64
		policy corev1.RestartPolicy
		want   int64 // 0: no hook
	}{
		"Istio's default":            {want: 5},
		"set":                        {drain: durationpb.New(20 * time.Second), want: 20},
		"part of a second":           {drain: durationpb.New(1500 * time.Millisecond), want: 2},
		"capped by the grace":        {grace: seconds(3), want: 2},
		"no room in the grace":       {grace: seconds(1)},
		"killed at once":             {grace: seconds(0)},
		"off":                        {drain: durationpb.New(0)},
		"a Job ends when it is done": {policy: corev1.RestartPolicyNever},
	} {
		j := &injection{
			pc:  &meshconfig.ProxyConfig{TerminationDrainDuration: c.drain},
			pod: &corev1.Pod{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: c.grace, RestartPolicy: c.policy}},
		}
		v, err := j.preStop()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := int64(0)
		if h, ok := v.(*corev1.LifecycleHandler); ok {
			got = h.Sleep.Seconds
		}
		if got != c.want {
			t.Errorf("%s: the hook sleeps %d s, want %d", name, got, c.want)
		}
	}
	j := &injection{pc: &meshconfig.ProxyConfig{TerminationDrainDuration: durationpb.New(-time.Second)}, pod: &corev1.Pod{}}
	if _, err := j.preStop(); err == nil {
		t.Error("a negative duration is accepted")
	}
}
