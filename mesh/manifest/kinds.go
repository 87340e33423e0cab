package manifest

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	networkingv1beta1 "istio.io/client-go/pkg/apis/networking/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	securityv1beta1 "istio.io/client-go/pkg/apis/security/v1beta1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	telemetryv1alpha1 "istio.io/client-go/pkg/apis/telemetry/v1alpha1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Scheme returns the kinds that Decode gives as typed objects: the built-in ones that people write, and Istio's.
var Scheme = sync.OnceValue(func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, discoveryv1.AddToScheme, policyv1.AddToScheme,
		rbacv1.AddToScheme, networkv1.AddToScheme, autoscalingv2.AddToScheme, admissionregistrationv1.AddToScheme,
		schedulingv1.AddToScheme, storagev1.AddToScheme, eventsv1.AddToScheme,
		networkingv1.AddToScheme, networkingv1beta1.AddToScheme, networkingv1alpha3.AddToScheme,
		securityv1.AddToScheme, securityv1beta1.AddToScheme,
		telemetryv1.AddToScheme, telemetryv1alpha1.AddToScheme, extensionsv1alpha1.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(err) // two types under one name: a mistake in this list
		}
	}
	return s
})

// clusterScoped are the kinds of Scheme that have no namespace.
var clusterScoped = map[string]bool{
	"Namespace": true, "Node": true, "PersistentVolume": true, "ClusterRole": true, "ClusterRoleBinding": true,
	"PriorityClass": true, "StorageClass": true, "CSIDriver": true, "CSINode": true, "VolumeAttachment": true, "IngressClass": true,
	"MutatingWebhookConfiguration": true, "ValidatingWebhookConfiguration": true, "ValidatingAdmissionPolicy": true,
	"ValidatingAdmissionPolicyBinding": true, "MutatingAdmissionPolicy": true, "MutatingAdmissionPolicyBinding": true,
	"CustomResourceDefinition": true, "APIService": true, "VolumeAttributesClass": true, "IPAddress": true, "ServiceCIDR": true,
	"GatewayClass": true, "ClusterIssuer": true,
}

// ofKubernetes reports whether a group is served by every cluster, so that an unknown kind in it is a mistake.
func ofKubernetes(group string) bool {
	return group == "" || group == "apps" || group == "batch"
}

// unknownKind says what is wrong with a kind of a known group, or returns "" for a group that nobody here knows.
func unknownKind(gvk schema.GroupVersionKind) string {
	var versions, kinds []string
	for known := range Scheme().AllKnownTypes() {
		if known.Group != gvk.Group {
			continue
		}
		if known.Kind == gvk.Kind {
			versions = append(versions, known.GroupVersion().String())
		}
		if !strings.HasSuffix(known.Kind, "List") && !strings.HasSuffix(known.Kind, "Options") && !slices.Contains(kinds, known.Kind) {
			kinds = append(kinds, known.Kind)
		}
	}
	slices.Sort(kinds)
	slices.Sort(versions)
	switch {
	case len(versions) > 0:
		return fmt.Sprintf("%s is not served in version %q; use apiVersion: %s", gvk.Kind, gvk.Version, strings.Join(versions, " or "))
	case !ofKubernetes(gvk.Group) && !strings.HasSuffix(gvk.Group, ".istio.io"):
		return ""
	}
	if n := Nearest(gvk.Kind, kinds); n != "" {
		return fmt.Sprintf("no such kind in %s; did you mean %s?", gvk.GroupVersion(), n)
	}
	if len(kinds) == 0 || ofKubernetes(gvk.Group) {
		return fmt.Sprintf("no such kind in %s", gvk.GroupVersion())
	}
	return fmt.Sprintf("no such kind in %s; it has %s", gvk.GroupVersion(), strings.Join(kinds, ", "))
}
