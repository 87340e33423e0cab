package store

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is anything the store keeps: a typed Kubernetes object, or an
// unstructured one for kinds this sandbox only passes on (all mesh kinds).
type Object interface {
	runtime.Object
	metav1.Object
}

// Kind describes one kind of object as discovery would.
type Kind struct {
	Group      string
	Version    string // the version objects are written in; others of the group are accepted as they are
	Kind       string
	Plural     string
	Singular   string
	Short      []string
	Namespaced bool
	// New makes an empty typed object; nil for kinds kept unstructured.
	New func() Object
	// Note is shown when an object of this kind is applied: why it has no effect here. Empty when it has one.
	Note string
}

// Resource is the kind's key in the store and in messages: "pods", "deployments.apps".
func (k *Kind) Resource() string {
	if k.Group == "" {
		return k.Plural
	}
	return k.Plural + "." + k.Group
}

// GroupResource gives the name in the form that apimachinery's errors take.
func (k *Kind) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group, Resource: k.Plural}
}

// Printed is the prefix kubectl prints before a name: "pod", "deployment.apps".
func (k *Kind) Printed() string {
	if k.Group == "" {
		return k.Singular
	}
	return k.Singular + "." + k.Group
}

// IsMesh reports whether the kind belongs to Istio's API groups.
func (k *Kind) IsMesh() bool { return strings.HasSuffix(k.Group, ".istio.io") }

const inert = "kept, but it has no effect in a sandbox"

func mesh(group, version, kind, plural string, short ...string) *Kind {
	return &Kind{Group: group + ".istio.io", Version: version, Kind: kind, Plural: plural, Singular: strings.ToLower(kind), Short: short, Namespaced: true}
}

// Kinds is everything a sandbox accepts, in the order in which "apply" of a
// directory and "get all" treat them.
var Kinds = []*Kind{
	{Version: "v1", Kind: "Namespace", Plural: "namespaces", Singular: "namespace", Short: []string{"ns"}, New: func() Object { return &corev1.Namespace{} }},
	{Version: "v1", Kind: "Node", Plural: "nodes", Singular: "node", Short: []string{"no"}, New: func() Object { return &corev1.Node{} }},
	{Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts", Singular: "serviceaccount", Short: []string{"sa"}, Namespaced: true, New: func() Object { return &corev1.ServiceAccount{} }},
	{Version: "v1", Kind: "ConfigMap", Plural: "configmaps", Singular: "configmap", Short: []string{"cm"}, Namespaced: true, New: func() Object { return &corev1.ConfigMap{} }},
	{Version: "v1", Kind: "Secret", Plural: "secrets", Singular: "secret", Namespaced: true, New: func() Object { return &corev1.Secret{} }},
	{Version: "v1", Kind: "Pod", Plural: "pods", Singular: "pod", Short: []string{"po"}, Namespaced: true, New: func() Object { return &corev1.Pod{} }},
	{Version: "v1", Kind: "Service", Plural: "services", Singular: "service", Short: []string{"svc"}, Namespaced: true, New: func() Object { return &corev1.Service{} }},
	{Group: "apps", Version: "v1", Kind: "DaemonSet", Plural: "daemonsets", Singular: "daemonset", Short: []string{"ds"}, Namespaced: true, New: func() Object { return &appsv1.DaemonSet{} }},
	{Group: "apps", Version: "v1", Kind: "Deployment", Plural: "deployments", Singular: "deployment", Short: []string{"deploy"}, Namespaced: true, New: func() Object { return &appsv1.Deployment{} }},
	{Group: "apps", Version: "v1", Kind: "ReplicaSet", Plural: "replicasets", Singular: "replicaset", Short: []string{"rs"}, Namespaced: true, New: func() Object { return &appsv1.ReplicaSet{} }},
	{Group: "apps", Version: "v1", Kind: "StatefulSet", Plural: "statefulsets", Singular: "statefulset", Short: []string{"sts"}, Namespaced: true, New: func() Object { return &appsv1.StatefulSet{} }},
	{Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs", Singular: "job", Namespaced: true, New: func() Object { return &batchv1.Job{} }},
	{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Plural: "endpointslices", Singular: "endpointslice", Short: []string{"ep", "endpoints", "eps"}, Namespaced: true, New: func() Object { return &discoveryv1.EndpointSlice{} }},
	{Version: "v1", Kind: "Event", Plural: "events", Singular: "event", Short: []string{"ev"}, Namespaced: true, New: func() Object { return &corev1.Event{} }},
	{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets", Singular: "poddisruptionbudget", Short: []string{"pdb"}, Namespaced: true, New: func() Object { return &policyv1.PodDisruptionBudget{} }, Note: inert},

	mesh("networking", "v1", "VirtualService", "virtualservices", "vs"),
	mesh("networking", "v1", "DestinationRule", "destinationrules", "dr"),
	mesh("networking", "v1", "Gateway", "gateways", "gw"),
	mesh("networking", "v1", "ServiceEntry", "serviceentries", "se"),
	mesh("networking", "v1", "Sidecar", "sidecars"),
	mesh("networking", "v1", "WorkloadEntry", "workloadentries", "we"),
	mesh("networking", "v1", "WorkloadGroup", "workloadgroups", "wg"),
	mesh("networking", "v1beta1", "ProxyConfig", "proxyconfigs"),
	mesh("networking", "v1alpha3", "EnvoyFilter", "envoyfilters"),
	mesh("security", "v1", "PeerAuthentication", "peerauthentications", "pa"),
	mesh("security", "v1", "RequestAuthentication", "requestauthentications", "ra"),
	mesh("security", "v1", "AuthorizationPolicy", "authorizationpolicies", "ap"),
	mesh("telemetry", "v1", "Telemetry", "telemetries", "telemetry"),
	mesh("extensions", "v1alpha1", "WasmPlugin", "wasmplugins"),

	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration", Plural: "mutatingwebhookconfigurations", Singular: "mutatingwebhookconfiguration"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration", Plural: "validatingwebhookconfigurations", Singular: "validatingwebhookconfiguration", Note: inert},
	{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition", Plural: "customresourcedefinitions", Singular: "customresourcedefinition", Short: []string{"crd"}, Note: inert},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role", Plural: "roles", Singular: "role", Namespaced: true, Note: inert},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding", Plural: "rolebindings", Singular: "rolebinding", Namespaced: true, Note: inert},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole", Plural: "clusterroles", Singular: "clusterrole", Note: inert},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding", Plural: "clusterrolebindings", Singular: "clusterrolebinding", Note: inert},
	{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers", Singular: "horizontalpodautoscaler", Short: []string{"hpa"}, Namespaced: true, Note: inert},
	{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Plural: "networkpolicies", Singular: "networkpolicy", Short: []string{"netpol"}, Namespaced: true, Note: inert},
	{Group: "networking.k8s.io", Version: "v1", Kind: "Ingress", Plural: "ingresses", Singular: "ingress", Short: []string{"ing"}, Namespaced: true, Note: inert},
	{Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses", Singular: "priorityclass", Short: []string{"pc"}, Note: inert},
	{Version: "v1", Kind: "LimitRange", Plural: "limitranges", Singular: "limitrange", Short: []string{"limits"}, Namespaced: true, Note: inert},
	{Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas", Singular: "resourcequota", Short: []string{"quota"}, Namespaced: true, Note: inert},
}

var (
	byGroupKind = map[schema.GroupKind]*Kind{}
	byName      = map[string]*Kind{}
)

func init() {
	for _, k := range Kinds {
		byGroupKind[schema.GroupKind{Group: k.Group, Kind: k.Kind}] = k
		for _, n := range append([]string{k.Plural, k.Singular, k.Resource(), k.Printed()}, k.Short...) {
			// The first kind wins a word that two groups share, as kubectl's discovery order does.
			if _, taken := byName[n]; !taken {
				byName[n] = k
			}
		}
	}
}

// KindOf finds the kind of an object by its apiVersion and kind.
func KindOf(gvk schema.GroupVersionKind) (*Kind, bool) {
	k, ok := byGroupKind[gvk.GroupKind()]
	return k, ok
}

// Resource finds a kind by any word a user may type for it: plural, singular,
// short name, with or without the group, in any case.
func Resource(word string) (*Kind, bool) {
	w := strings.ToLower(word)
	if k, ok := byName[w]; ok {
		return k, ok
	}
	// "deployments.v1.apps" and "vs.networking.istio.io" name the group too.
	head, rest, found := strings.Cut(w, ".")
	if !found {
		return nil, false
	}
	for _, k := range Kinds {
		if rest != k.Group && !strings.HasSuffix(rest, "."+k.Group) {
			continue
		}
		if head == k.Plural || head == k.Singular {
			return k, true
		}
		for _, s := range k.Short {
			if head == s {
				return k, true
			}
		}
	}
	return nil, false
}

// KindFor returns the kind of a stored object; typed objects that come from Go
// code often carry no TypeMeta, so the Go type decides for them.
func KindFor(o Object) (*Kind, bool) {
	if u, ok := o.(*unstructured.Unstructured); ok {
		return KindOf(u.GroupVersionKind())
	}
	name := typedKind(o)
	if name == "" {
		return nil, false
	}
	return byName[name], true
}

func typedKind(o Object) string {
	switch o.(type) {
	case *corev1.Namespace:
		return "namespaces"
	case *corev1.Node:
		return "nodes"
	case *corev1.ServiceAccount:
		return "serviceaccounts"
	case *corev1.ConfigMap:
		return "configmaps"
	case *corev1.Secret:
		return "secrets"
	case *corev1.Pod:
		return "pods"
	case *corev1.Service:
		return "services"
	case *corev1.Event:
		return "events"
	case *appsv1.DaemonSet:
		return "daemonsets"
	case *appsv1.Deployment:
		return "deployments"
	case *appsv1.ReplicaSet:
		return "replicasets"
	case *appsv1.StatefulSet:
		return "statefulsets"
	case *batchv1.Job:
		return "jobs"
	case *discoveryv1.EndpointSlice:
		return "endpointslices"
	case *policyv1.PodDisruptionBudget:
		return "poddisruptionbudgets"
	}
	return ""
}
