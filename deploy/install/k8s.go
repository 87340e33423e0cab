package install

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// values of a component are collected here: only what was said.
type values struct{ tree Tree }

// say puts the JSON form of v at a path unless v is empty.
func (s *values) say(v any, path ...string) {
	text, err := json.Marshal(v)
	if err != nil {
		return // these are Kubernetes' own types and plain maps
	}
	var plainValue any
	if err := json.Unmarshal(text, &plainValue); err != nil || empty(plainValue) {
		return
	}
	if s.tree == nil {
		s.tree = Tree{}
	}
	put(s.tree, whole(plainValue), path...)
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case Tree:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}

// whole turns the floats of encoding/json that are integers back into integers.
func whole(v any) any {
	switch v := v.(type) {
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	case Tree:
		for k := range v {
			v[k] = whole(v[k])
		}
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	}
	return v
}

// env are a component's environment variables: plain ones as the charts' mapping.
func (s *values) env(vars []corev1.EnvVar) {
	for _, e := range vars {
		if e.ValueFrom == nil {
			if s.tree == nil {
				s.tree = Tree{}
			}
			put(s.tree, e.Value, "env", e.Name)
		}
	}
}

// envFrom are those that charts of gateways and the node agent cannot say.
func envFrom(vars []corev1.EnvVar) []corev1.EnvVar {
	var out []corev1.EnvVar
	for _, e := range vars {
		if e.ValueFrom != nil {
			out = append(out, e)
		}
	}
	return out
}

// pilotValues are the values below "pilot" of the istiod chart.
func pilotValues(c Component) Tree {
	s := &values{}
	k := c.K8s
	s.say(c.Hub, "hub")
	s.say(c.Tag, "tag")
	s.say(k.Resources, "resources")
	s.say(k.ReplicaCount, "replicaCount")
	if k.HPASpec != nil {
		s.say(k.HPASpec.MinReplicas, "autoscaleMin")
		if k.HPASpec.MaxReplicas > 0 {
			s.say(k.HPASpec.MaxReplicas, "autoscaleMax")
		}
		s.say(k.HPASpec.utilization("cpu"), "cpu", "targetAverageUtilization")
		s.say(k.HPASpec.utilization("memory"), "memory", "targetAverageUtilization")
		s.say(k.HPASpec.Behavior, "autoscaleBehavior")
	} else if k.ReplicaCount != nil {
		s.say(false, "autoscaleEnabled") // who asks for a number wants that number
	}
	s.env(k.Env)
	s.say(envFrom(k.Env), "envVarFrom")
	s.say(k.NodeSelector, "nodeSelector")
	s.say(k.Tolerations, "tolerations")
	s.say(k.Affinity, "affinity")
	s.say(k.TopologySpread, "topologySpreadConstraints")
	s.say(k.PodAnnotations, "podAnnotations")
	s.say(k.PodLabels, "podLabels")
	s.say(k.ServiceAnnotations, "serviceAnnotations")
	s.say(k.Volumes, "volumes")
	s.say(k.VolumeMounts, "volumeMounts")
	return s.tree
}

// cniValues are the values below "cni" of the cni chart.
func cniValues(c Component) Tree {
	s := &values{}
	k := c.K8s
	s.say(c.Hub, "hub")
	s.say(c.Tag, "tag")
	s.say(k.Resources, "resources")
	s.env(k.Env)
	s.say(k.NodeSelector, "nodeSelector")
	s.say(k.Tolerations, "tolerations")
	s.say(k.Affinity, "affinity")
	s.say(k.PodAnnotations, "podAnnotations")
	s.say(k.PodLabels, "podLabels")
	if s.tree == nil {
		return Tree{}
	}
	return s.tree
}

// utilization is the percentage that the autoscaler holds a resource at; nil when nothing is said.
func (h *autoscalingv2Spec) utilization(resource string) *int32 {
	for _, m := range h.Metrics {
		if m.Resource == nil || m.Resource.Name != resource {
			continue
		}
		if m.Resource.Target != nil && m.Resource.Target.AverageUtilization != nil {
			return m.Resource.Target.AverageUtilization
		}
		return m.Resource.TargetAverageUtilization
	}
	return nil
}

// target names the objects of a component that settings without a value are merged into.
type target struct {
	kind      string // of the workload
	name      string // of the workload, its Service, autoscaler and PodDisruptionBudget
	container string
}

// patches are the settings that no chart has a value for, as strategic merge patches.
func (k K8s) patches(t target) ([]objectPatch, error) {
	var out []objectPatch
	pod, container := Tree{}, Tree{}
	s := &values{}
	s.say(k.ImagePullPolicy, "imagePullPolicy")
	s.say(k.ReadinessProbe, "readinessProbe")
	if t.kind == "DaemonSet" || t.container == "istio-proxy" {
		s.say(envFrom(k.Env), "env")
		s.say(k.VolumeMounts, "volumeMounts")
	}
	if len(s.tree) > 0 {
		container = merge(Tree{"name": t.container}, s.tree)
	}
	s = &values{}
	s.say(k.PriorityClassName, "priorityClassName")
	s.say(k.SecurityContext, "securityContext")
	if t.kind == "DaemonSet" || t.container == "istio-proxy" {
		s.say(k.Volumes, "volumes")
	}
	if len(container) > 0 {
		s.say([]any{container}, "containers")
	}
	pod = merge(pod, s.tree)
	spec := &values{}
	spec.say(pod, "template", "spec")
	if t.kind == "DaemonSet" {
		spec.say(k.Strategy, "updateStrategy")
	} else {
		spec.say(k.Strategy, "strategy")
	}
	add := func(kind string, spec Tree) {
		if len(spec) > 0 {
			out = append(out, objectPatch{kind: kind, name: t.name, patch: Tree{"spec": spec}})
		}
	}
	add(t.kind, spec.tree)
	if t.container != "istio-proxy" { // the gateway chart has values for these
		svc := &values{}
		svc.say(k.Service, ".")
		add("Service", asTree(svc.tree["."]))
	}
	pdb := &values{}
	pdb.say(k.PodDisruptionBudget, ".")
	if body := asTree(pdb.tree["."]); len(body) > 0 && t.container != "istio-proxy" {
		out = append(out, objectPatch{kind: "PodDisruptionBudget", name: t.name, patch: Tree{"spec": body}, replaceSpec: []string{"minAvailable", "maxUnavailable"}})
	}
	if len(out) > 0 && t.name == "" {
		return nil, fmt.Errorf("components.base.k8s has settings of pods, but the component has none: move them to the component that is meant")
	}
	return out, nil
}
