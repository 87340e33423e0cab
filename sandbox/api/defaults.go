package api

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/sandbox/store"
)

// setDefaults fills in what the Kubernetes API server would, as far as somebody
// here (kubelet, controllers, webhook, a reader of "get -o yaml") looks at it.
// Source: k8s.io/kubernetes pkg/apis/*/v1/defaults.go.
func setDefaults(o store.Object) {
	switch t := o.(type) {
	case *corev1.Namespace:
		if t.Labels == nil {
			t.Labels = map[string]string{}
		}
		t.Labels[corev1.LabelMetadataName] = t.Name
		t.Spec.Finalizers = nil
		t.Status.Phase = corev1.NamespaceActive
	case *corev1.Pod:
		defaultPod(&t.Spec)
		if t.Spec.EnableServiceLinks == nil {
			t.Spec.EnableServiceLinks = ptr(true)
		}
		if t.Status.Phase == "" {
			t.Status.Phase = corev1.PodPending
		}
	case *corev1.Secret:
		setIfEmpty(&t.Type, corev1.SecretTypeOpaque)
		if len(t.StringData) > 0 && t.Data == nil {
			t.Data = map[string][]byte{}
		}
		for k, v := range t.StringData {
			t.Data[k] = []byte(v)
		}
		t.StringData = nil
	case *corev1.Service:
		defaultService(t)
	case *appsv1.Deployment:
		setIfNil(&t.Spec.Replicas, 1)
		setIfEmpty(&t.Spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
		if t.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
			if t.Spec.Strategy.RollingUpdate == nil {
				t.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{}
			}
			setIfNil(&t.Spec.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
			setIfNil(&t.Spec.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		}
		setIfNil(&t.Spec.RevisionHistoryLimit, 10)
		setIfNil(&t.Spec.ProgressDeadlineSeconds, 600)
		defaultPod(&t.Spec.Template.Spec)
	case *appsv1.ReplicaSet:
		setIfNil(&t.Spec.Replicas, 1)
		defaultPod(&t.Spec.Template.Spec)
	case *appsv1.StatefulSet:
		setIfNil(&t.Spec.Replicas, 1)
		setIfEmpty(&t.Spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
		setIfEmpty(&t.Spec.UpdateStrategy.Type, appsv1.RollingUpdateStatefulSetStrategyType)
		setIfNil(&t.Spec.RevisionHistoryLimit, 10)
		defaultPod(&t.Spec.Template.Spec)
	case *appsv1.DaemonSet:
		setIfEmpty(&t.Spec.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
		setIfNil(&t.Spec.RevisionHistoryLimit, 10)
		defaultPod(&t.Spec.Template.Spec)
	case *batchv1.Job:
		if t.Spec.Completions == nil && t.Spec.Parallelism == nil {
			t.Spec.Completions = ptr(int32(1))
		}
		setIfNil(&t.Spec.Parallelism, 1)
		setIfNil(&t.Spec.BackoffLimit, 6)
		setIfNil(&t.Spec.Suspend, false)
		setIfNil(&t.Spec.CompletionMode, batchv1.NonIndexedCompletion)
		defaultPod(&t.Spec.Template.Spec)
	}
}

func defaultService(s *corev1.Service) {
	setIfEmpty(&s.Spec.Type, corev1.ServiceTypeClusterIP)
	setIfEmpty(&s.Spec.SessionAffinity, corev1.ServiceAffinityNone)
	if s.Spec.Type != corev1.ServiceTypeExternalName {
		setIfNil(&s.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		setIfEmpty(&s.Spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		setIfEmpty(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
}

func defaultPod(p *corev1.PodSpec) {
	setIfEmpty(&p.RestartPolicy, corev1.RestartPolicyAlways)
	setIfEmpty(&p.DNSPolicy, corev1.DNSClusterFirst)
	setIfEmpty(&p.SchedulerName, corev1.DefaultSchedulerName)
	setIfNil(&p.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	if p.SecurityContext == nil {
		p.SecurityContext = &corev1.PodSecurityContext{}
	}
	if p.ServiceAccountName == "" {
		p.ServiceAccountName = p.DeprecatedServiceAccount
	}
	p.DeprecatedServiceAccount = p.ServiceAccountName
	for i := range p.InitContainers {
		defaultContainer(&p.InitContainers[i], p.HostNetwork)
	}
	for i := range p.Containers {
		defaultContainer(&p.Containers[i], p.HostNetwork)
	}
	for i := range p.Volumes {
		v := &p.Volumes[i].VolumeSource
		if v.ConfigMap != nil {
			setIfNil(&v.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
		}
		if v.Secret != nil {
			setIfNil(&v.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
		}
		if v.DownwardAPI != nil {
			setIfNil(&v.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
			for j := range v.DownwardAPI.Items {
				defaultField(v.DownwardAPI.Items[j].FieldRef)
			}
		}
		if v.Projected != nil {
			setIfNil(&v.Projected.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
			for j := range v.Projected.Sources {
				if t := v.Projected.Sources[j].ServiceAccountToken; t != nil {
					setIfNil(&t.ExpirationSeconds, 3600)
				}
				if w := v.Projected.Sources[j].DownwardAPI; w != nil {
					for k := range w.Items {
						defaultField(w.Items[k].FieldRef)
					}
				}
			}
		}
		if v.HostPath != nil {
			setIfNil(&v.HostPath.Type, corev1.HostPathUnset)
		}
		if *v == (corev1.VolumeSource{}) {
			v.EmptyDir = &corev1.EmptyDirVolumeSource{}
		}
	}
}

func defaultContainer(c *corev1.Container, hostNetwork bool) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = corev1.PullIfNotPresent
		if name := c.Image[strings.LastIndex(c.Image, "/")+1:]; !strings.Contains(name, "@") && (!strings.Contains(name, ":") || strings.HasSuffix(name, ":latest")) {
			c.ImagePullPolicy = corev1.PullAlways
		}
	}
	setIfEmpty(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	setIfEmpty(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		setIfEmpty(&c.Ports[i].Protocol, corev1.ProtocolTCP)
		if hostNetwork && c.Ports[i].HostPort == 0 {
			c.Ports[i].HostPort = c.Ports[i].ContainerPort
		}
	}
	for i := range c.Env {
		if f := c.Env[i].ValueFrom; f != nil {
			defaultField(f.FieldRef)
		}
	}
	defaultProbe(c.LivenessProbe)
	defaultProbe(c.ReadinessProbe)
	defaultProbe(c.StartupProbe)
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil && h.HTTPGet != nil {
				setIfEmpty(&h.HTTPGet.Path, "/")
				setIfEmpty(&h.HTTPGet.Scheme, corev1.URISchemeHTTP)
			}
		}
	}
	for name, q := range c.Resources.Limits {
		if c.Resources.Requests == nil {
			c.Resources.Requests = corev1.ResourceList{}
		}
		if _, set := c.Resources.Requests[name]; !set {
			c.Resources.Requests[name] = q
		}
	}
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	setIfZero(&p.TimeoutSeconds, 1)
	setIfZero(&p.PeriodSeconds, 10)
	setIfZero(&p.SuccessThreshold, 1)
	setIfZero(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		setIfEmpty(&p.HTTPGet.Path, "/")
		setIfEmpty(&p.HTTPGet.Scheme, corev1.URISchemeHTTP)
	}
	if p.GRPC != nil && p.GRPC.Service == nil {
		p.GRPC.Service = ptr("")
	}
}

func defaultField(f *corev1.ObjectFieldSelector) {
	if f != nil {
		setIfEmpty(&f.APIVersion, "v1")
	}
}

func ptr[T any](v T) *T { return &v }

func setIfEmpty[T ~string](p *T, v T) {
	if *p == "" {
		*p = v
	}
}

func setIfZero(p *int32, v int32) {
	if *p == 0 {
		*p = v
	}
}

func setIfNil[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}
