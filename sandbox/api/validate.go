package api

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weft-mesh/weft/sandbox/store"
)

// validate applies the API server's rules that protect what comes after: names
// that become DNS labels and file names, selectors that select their own
// pods, ports and container names that are unique.
func validate(k *store.Kind, o store.Object) field.ErrorList {
	var errs field.ErrorList
	meta := field.NewPath("metadata")
	name := validation.IsDNS1123Subdomain
	switch o.(type) {
	case *corev1.Service:
		name = validation.IsDNS1035Label
	case *corev1.Namespace:
		name = validation.IsDNS1123Label
	}
	if !strings.Contains(k.Group, "rbac") { // RBAC names are path segments: "system:node"
		for _, msg := range name(o.GetName()) {
			errs = append(errs, field.Invalid(meta.Child("name"), o.GetName(), msg))
		}
	}
	for key, v := range o.GetLabels() {
		errs = append(errs, validateLabel(meta.Child("labels"), key, v)...)
	}
	for key := range o.GetAnnotations() {
		for _, msg := range validation.IsQualifiedName(strings.ToLower(key)) {
			errs = append(errs, field.Invalid(meta.Child("annotations"), key, msg))
		}
	}
	spec := field.NewPath("spec")
	switch t := o.(type) {
	case *corev1.Pod:
		errs = append(errs, validatePod(spec, &t.Spec)...)
	case *corev1.Service:
		errs = append(errs, validateService(spec, &t.Spec)...)
	case *appsv1.Deployment:
		errs = append(errs, validateTemplate(spec, t.Spec.Selector, &t.Spec.Template, t.Spec.Replicas, corev1.RestartPolicyAlways)...)
	case *appsv1.ReplicaSet:
		errs = append(errs, validateTemplate(spec, t.Spec.Selector, &t.Spec.Template, t.Spec.Replicas, corev1.RestartPolicyAlways)...)
	case *appsv1.StatefulSet:
		errs = append(errs, validateTemplate(spec, t.Spec.Selector, &t.Spec.Template, t.Spec.Replicas, corev1.RestartPolicyAlways)...)
		if len(t.Spec.VolumeClaimTemplates) > 0 {
			errs = append(errs, field.Forbidden(spec.Child("volumeClaimTemplates"), "a sandbox has no persistent volumes; use an emptyDir volume in the template"))
		}
	case *appsv1.DaemonSet:
		errs = append(errs, validateTemplate(spec, t.Spec.Selector, &t.Spec.Template, nil, corev1.RestartPolicyAlways)...)
	case *batchv1.Job:
		errs = append(errs, validatePod(spec.Child("template", "spec"), &t.Spec.Template.Spec)...)
		if p := t.Spec.Template.Spec.RestartPolicy; p != corev1.RestartPolicyNever && p != corev1.RestartPolicyOnFailure {
			errs = append(errs, field.Required(spec.Child("template", "spec", "restartPolicy"), `a Job needs "OnFailure" or "Never"`))
		}
	}
	return errs
}

func validateLabel(at *field.Path, key, value string) (errs field.ErrorList) {
	for _, msg := range validation.IsQualifiedName(key) {
		errs = append(errs, field.Invalid(at, key, msg))
	}
	for _, msg := range validation.IsValidLabelValue(value) {
		errs = append(errs, field.Invalid(at.Key(key), value, msg))
	}
	return errs
}

func validateTemplate(spec *field.Path, sel *metav1.LabelSelector, t *corev1.PodTemplateSpec, replicas *int32, restart corev1.RestartPolicy) (errs field.ErrorList) {
	switch s, err := metav1.LabelSelectorAsSelector(sel); {
	case sel == nil || len(sel.MatchLabels)+len(sel.MatchExpressions) == 0:
		errs = append(errs, field.Required(spec.Child("selector"), "it says which pods belong here"))
	case err != nil:
		errs = append(errs, field.Invalid(spec.Child("selector"), metav1.FormatLabelSelector(sel), err.Error()))
	case !s.Matches(labels.Set(t.Labels)):
		errs = append(errs, field.Invalid(spec.Child("template", "metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	if replicas != nil && *replicas < 0 {
		errs = append(errs, field.Invalid(spec.Child("replicas"), *replicas, "must not be negative"))
	}
	for k, v := range t.Labels {
		errs = append(errs, validateLabel(spec.Child("template", "metadata", "labels"), k, v)...)
	}
	pod := spec.Child("template", "spec")
	if t.Spec.RestartPolicy != restart {
		errs = append(errs, field.NotSupported(pod.Child("restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{restart}))
	}
	return append(errs, validatePod(pod, &t.Spec)...)
}

func validatePod(at *field.Path, p *corev1.PodSpec) (errs field.ErrorList) {
	if len(p.Containers) == 0 {
		errs = append(errs, field.Required(at.Child("containers"), ""))
	}
	volumes := map[string]bool{}
	for i, v := range p.Volumes {
		vp := at.Child("volumes").Index(i)
		for _, msg := range validation.IsDNS1123Label(v.Name) {
			errs = append(errs, field.Invalid(vp.Child("name"), v.Name, msg))
		}
		if volumes[v.Name] {
			errs = append(errs, field.Duplicate(vp.Child("name"), v.Name))
		}
		volumes[v.Name] = true
		if v.PersistentVolumeClaim != nil {
			errs = append(errs, field.Forbidden(vp.Child("persistentVolumeClaim"), "a sandbox has no persistent volumes; use emptyDir or hostPath"))
		}
	}
	names := map[string]bool{}
	check := func(at *field.Path, list []corev1.Container, init bool) {
		for i := range list {
			c := &list[i]
			cp := at.Index(i)
			for _, msg := range validation.IsDNS1123Label(c.Name) {
				errs = append(errs, field.Invalid(cp.Child("name"), c.Name, msg))
			}
			if names[c.Name] {
				errs = append(errs, field.Duplicate(cp.Child("name"), c.Name))
			}
			names[c.Name] = true
			if c.Image == "" {
				errs = append(errs, field.Required(cp.Child("image"), ""))
			}
			if c.RestartPolicy != nil && !init {
				errs = append(errs, field.Forbidden(cp.Child("restartPolicy"), "only an init container may have one (a sidecar: Always)"))
			}
			ports := map[string]bool{}
			for j, port := range c.Ports {
				pp := cp.Child("ports").Index(j)
				for _, msg := range validation.IsValidPortNum(int(port.ContainerPort)) {
					errs = append(errs, field.Invalid(pp.Child("containerPort"), port.ContainerPort, msg))
				}
				if port.Name != "" {
					for _, msg := range validation.IsValidPortName(port.Name) {
						errs = append(errs, field.Invalid(pp.Child("name"), port.Name, msg))
					}
					if ports[port.Name] {
						errs = append(errs, field.Duplicate(pp.Child("name"), port.Name))
					}
					ports[port.Name] = true
				}
			}
			for j, m := range c.VolumeMounts {
				mp := cp.Child("volumeMounts").Index(j)
				if !volumes[m.Name] {
					errs = append(errs, field.NotFound(mp.Child("name"), m.Name))
				}
				if m.MountPath == "" {
					errs = append(errs, field.Required(mp.Child("mountPath"), ""))
				}
			}
			for j, e := range c.Env {
				if e.Name == "" {
					errs = append(errs, field.Required(cp.Child("env").Index(j).Child("name"), ""))
				}
			}
			for probe, pr := range map[string]*corev1.Probe{"livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe, "startupProbe": c.StartupProbe} {
				errs = append(errs, validateProbe(cp.Child(probe), pr)...)
			}
		}
	}
	check(at.Child("initContainers"), p.InitContainers, true)
	check(at.Child("containers"), p.Containers, false)
	return errs
}

func validateProbe(at *field.Path, p *corev1.Probe) (errs field.ErrorList) {
	if p == nil {
		return nil
	}
	n := 0
	for _, set := range []bool{p.Exec != nil, p.HTTPGet != nil, p.TCPSocket != nil, p.GRPC != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		errs = append(errs, field.Invalid(at, n, "needs exactly one of exec, httpGet, tcpSocket, grpc"))
	}
	if p.PeriodSeconds < 1 || p.TimeoutSeconds < 1 || p.FailureThreshold < 1 || p.InitialDelaySeconds < 0 {
		errs = append(errs, field.Invalid(at, p.PeriodSeconds, "periodSeconds, timeoutSeconds and failureThreshold must be at least 1, initialDelaySeconds at least 0"))
	}
	return errs
}

func validateService(at *field.Path, s *corev1.ServiceSpec) (errs field.ErrorList) {
	if s.Type == corev1.ServiceTypeExternalName {
		if s.ExternalName == "" {
			errs = append(errs, field.Required(at.Child("externalName"), ""))
		}
	} else if len(s.Ports) == 0 && s.ClusterIP != corev1.ClusterIPNone {
		errs = append(errs, field.Required(at.Child("ports"), ""))
	}
	names, numbers := map[string]bool{}, map[string]bool{}
	for i, p := range s.Ports {
		pp := at.Child("ports").Index(i)
		for _, msg := range validation.IsValidPortNum(int(p.Port)) {
			errs = append(errs, field.Invalid(pp.Child("port"), p.Port, msg))
		}
		if p.Name == "" && len(s.Ports) > 1 {
			errs = append(errs, field.Required(pp.Child("name"), "needed when there are several ports"))
		}
		if p.Name != "" {
			for _, msg := range validation.IsDNS1123Label(p.Name) {
				errs = append(errs, field.Invalid(pp.Child("name"), p.Name, msg))
			}
			if names[p.Name] {
				errs = append(errs, field.Duplicate(pp.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		number := fmt.Sprintf("%s/%d", p.Protocol, p.Port)
		if numbers[number] {
			errs = append(errs, field.Duplicate(pp.Child("port"), number))
		}
		numbers[number] = true
		if p.TargetPort.Type == intstr.Int {
			for _, msg := range validation.IsValidPortNum(p.TargetPort.IntValue()) {
				errs = append(errs, field.Invalid(pp.Child("targetPort"), p.TargetPort.IntValue(), msg))
			}
		} else {
			for _, msg := range validation.IsValidPortName(p.TargetPort.StrVal) {
				errs = append(errs, field.Invalid(pp.Child("targetPort"), p.TargetPort.StrVal, msg))
			}
		}
	}
	return errs
}

// validateChange refuses changes that Kubernetes refuses too, because they
// would leave pods without an owner or a process that runs another spec than its object says.
func validateChange(old, now store.Object) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	immutable := func(path string, a, b any) {
		if !sameJSON(a, b) {
			errs = append(errs, field.Invalid(spec.Child(path), "", "field is immutable: delete the object and apply it again"))
		}
	}
	switch t := now.(type) {
	case *appsv1.Deployment:
		immutable("selector", old.(*appsv1.Deployment).Spec.Selector, t.Spec.Selector)
	case *appsv1.StatefulSet:
		o := old.(*appsv1.StatefulSet)
		immutable("selector", o.Spec.Selector, t.Spec.Selector)
		immutable("serviceName", o.Spec.ServiceName, t.Spec.ServiceName)
		immutable("podManagementPolicy", o.Spec.PodManagementPolicy, t.Spec.PodManagementPolicy)
	case *appsv1.DaemonSet:
		immutable("selector", old.(*appsv1.DaemonSet).Spec.Selector, t.Spec.Selector)
	case *batchv1.Job:
		o := old.(*batchv1.Job)
		immutable("template", o.Spec.Template, t.Spec.Template)
		immutable("completions", o.Spec.Completions, t.Spec.Completions)
	case *corev1.Pod:
		o := old.(*corev1.Pod)
		if !sameJSON(o.Spec, t.Spec) {
			errs = append(errs, field.Forbidden(spec, "a running pod's spec cannot be changed here: delete the pod and apply it again"))
		}
	case *corev1.ConfigMap:
		o := old.(*corev1.ConfigMap)
		if o.Immutable != nil && *o.Immutable && (!sameJSON(o.Data, t.Data) || !sameJSON(o.BinaryData, t.BinaryData)) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
		}
	}
	return errs
}
