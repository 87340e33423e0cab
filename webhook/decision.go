package webhook

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Istio's labels and annotations that decide.
const (
	labelInject         = "sidecar.istio.io/inject" // on pods, as label and as annotation
	labelInjection      = "istio-injection"         // on namespaces
	labelRevision       = "istio.io/rev"            // on namespaces and pods
	annotationTemplates = "inject.istio.io/templates"
	annotationStatus    = "sidecar.istio.io/status"
)

// Reason is why a pod is, or is not, injected. It is a stable word for logs, metrics and scripts.
type Reason string

// Reasons to inject.
const (
	ByNamespaceLabel    Reason = "NamespaceLabel"
	ByNamespaceRevision Reason = "NamespaceRevision"
	ByPodLabel          Reason = "PodLabel"
	ByPodAnnotation     Reason = "PodAnnotation"
	ByPodRevision       Reason = "PodRevision"
	ByAlwaysSelector    Reason = "AlwaysInjectSelector"
	BySelectors         Reason = "Selected"
)

// Reasons not to.
const (
	HostNetwork        Reason = "HostNetwork"
	SystemNamespace    Reason = "SystemNamespace"
	Windows            Reason = "Windows"
	PodOptedOut        Reason = "PodOptedOut"
	NeverSelector      Reason = "NeverInjectSelector"
	NamespaceOptedOut  Reason = "NamespaceOptedOut"
	NamespaceNoLabel   Reason = "NamespaceNotLabeled"
	OtherRevision      Reason = "OtherRevision"
	PolicyNeedsOptIn   Reason = "PolicyDisabled"
	NotAPod            Reason = "NotAPod"
	NotBeingCreated    Reason = "NotBeingCreated"
	ReasonInvalidInput Reason = "InvalidInput"
)

// Decision is whether a pod gets a proxy, and why.
type Decision struct {
	Inject  bool   `json:"inject"`
	Reason  Reason `json:"reason"`
	Message string `json:"message"` // one sentence that names the label, annotation or field that decided
	// Unwanted: somebody asked for a proxy, and another rule prevents it. The user should be told.
	Unwanted bool     `json:"-"`
	Warnings []string `json:"warnings,omitempty"`
}

// systemNamespaces never get proxies (Istio: IgnoredNamespaces).
var systemNamespaces = []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, "local-path-storage"}

// Decide says whether the pod is injected in a namespace with these labels. It is a pure function.
//
// The order is Istio's. First who is asked at all (its webhook selectors): the namespace labels istio-injection and
// istio.io/rev, then, only in a namespace that has neither, the pod labels sidecar.istio.io/inject=true and istio.io/rev. Then
// the pod: host network, system namespaces, the label or (when there is no label) the annotation sidecar.istio.io/inject, the never
// and always selectors, the policy.
func (in *Injector) Decide(pod *corev1.Pod, namespace string, nsLabels map[string]string) Decision {
	asked := in.asked(pod, nsLabels)
	if !asked.Inject {
		return asked
	}
	if d, decided := in.prevented(pod, namespace); decided {
		return d
	}
	return in.podDecision(pod, asked)
}

// DecideSelected is Decide for a pod that an API server sent: the selectors of the webhook's configuration, which say what the
// labels say, have chosen it, on labels that are never older than the pod. Ours may be, so they only serve to explain: a pod that is created
// right after its namespace was labeled must not slip through (Istio: the injector does not look at namespaces either).
func (in *Injector) DecideSelected(pod *corev1.Pod, namespace string, nsLabels map[string]string) Decision {
	asked := in.asked(pod, nsLabels)
	if !asked.Inject {
		asked = Decision{Inject: true, Reason: BySelectors, Message: "selected by the API server's webhook configuration"}
	}
	if d, decided := in.prevented(pod, namespace); decided {
		return d
	}
	return in.podDecision(pod, asked)
}

// DecideEnabled is Decide for a namespace that is taken as enabled, whatever its labels: the rule of kube-inject, where
// running the command is what asks for injection.
func (in *Injector) DecideEnabled(pod *corev1.Pod, namespace string) Decision {
	asked := Decision{Inject: true, Reason: ByNamespaceLabel, Message: "weft kube-inject injects what does not opt out"}
	if d, decided := in.prevented(pod, namespace); decided {
		return d
	}
	return in.podDecision(pod, asked)
}

// asked evaluates what Istio writes into the selectors of its webhooks.
func (in *Injector) asked(pod *corev1.Pod, ns map[string]string) Decision {
	injection, hasInjection := ns[labelInjection]
	nsRevision, hasRevision := ns[labelRevision]
	podLabel, hasPodLabel := pod.Labels[labelInject]
	podRevision, hasPodRevision := pod.Labels[labelRevision]
	if podLabel == "false" {
		return Decision{Reason: PodOptedOut, Message: "pod label " + labelInject + "=false"}
	}
	switch {
	case hasInjection && injection == "enabled":
		if !in.defaultRevision() {
			return Decision{Reason: OtherRevision, Message: fmt.Sprintf("namespace label %s=enabled means revision default, and this is %s", labelInjection, in.o.Revision)}
		}
		return Decision{Inject: true, Reason: ByNamespaceLabel, Message: "namespace label " + labelInjection + "=enabled"}
	case hasInjection:
		return Decision{Reason: NamespaceOptedOut, Message: fmt.Sprintf("namespace label %s=%s (only enabled injects)", labelInjection, injection)}
	case hasRevision && in.revision(nsRevision):
		return Decision{Inject: true, Reason: ByNamespaceRevision, Message: "namespace label " + labelRevision + "=" + nsRevision}
	case hasRevision:
		return Decision{Reason: OtherRevision, Message: fmt.Sprintf("namespace label %s=%s belongs to another control plane (this is %s)", labelRevision, nsRevision, in.o.Revision)}
	case hasPodRevision && in.revision(podRevision):
		return Decision{Inject: true, Reason: ByPodRevision, Message: "pod label " + labelRevision + "=" + podRevision}
	case hasPodRevision:
		return Decision{Reason: OtherRevision, Message: fmt.Sprintf("pod label %s=%s belongs to another control plane (this is %s)", labelRevision, podRevision, in.o.Revision)}
	case hasPodLabel && podLabel == "true" && in.defaultRevision():
		return Decision{Inject: true, Reason: ByPodLabel, Message: "pod label " + labelInject + "=true"}
	case pod.Annotations[labelInject] == "true" && !hasPodLabel:
		return Decision{Reason: NamespaceNoLabel, Message: fmt.Sprintf("the namespace has no label %s or %s, and there the annotation %s=true is not looked at; make it a label of the pod", labelInjection, labelRevision, labelInject)}
	}
	return Decision{Reason: NamespaceNoLabel, Message: fmt.Sprintf("the namespace has no label %s=enabled or %s, and the pod no label %s=true", labelInjection, labelRevision, labelInject)}
}

func (in *Injector) defaultRevision() bool { return in.revision("default") }

func (in *Injector) revision(r string) bool {
	return r == in.o.Revision || slices.Contains(in.o.Tags, r)
}

// prevented are pods that cannot or must not have a proxy, whoever asks.
func (in *Injector) prevented(pod *corev1.Pod, namespace string) (Decision, bool) {
	no := func(r Reason, format string, args ...any) (Decision, bool) {
		return Decision{Reason: r, Message: fmt.Sprintf(format, args...), Unwanted: r != SystemNamespace}, true
	}
	switch {
	case slices.Contains(systemNamespaces, namespace):
		return no(SystemNamespace, "namespace %s is never injected", namespace)
	case namespace == in.o.RootNamespace && pod.Labels[labelInject] != "true":
		return no(SystemNamespace, "namespace %s is the control plane's; only a pod label %s=true (a gateway) injects there", namespace, labelInject)
	case pod.Spec.HostNetwork:
		return no(HostNetwork, "hostNetwork: true: the pod has no network of its own that could be redirected")
	case pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows:
		return no(Windows, "spec.os.name: windows: the proxy runs on Linux only")
	case pod.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows):
		return no(Windows, "nodeSelector %s=windows: the proxy runs on Linux only", corev1.LabelOSStable)
	}
	return Decision{}, false
}

// podDecision is Istio's injectRequired.
func (in *Injector) podDecision(pod *corev1.Pod, asked Decision) Decision {
	value, from, reason := pod.Annotations[labelInject], "annotation", ByPodAnnotation
	if label, ok := pod.Labels[labelInject]; ok {
		value, from, reason = label, "label", ByPodLabel
	}
	var warnings []string
	switch value {
	case "true":
		said := fmt.Sprintf("pod %s %s=true", from, labelInject)
		if asked.Message != said {
			said = asked.Message + "; " + said
		}
		return Decision{Inject: true, Reason: reason, Message: said}
	case "false":
		return Decision{Reason: PodOptedOut, Message: fmt.Sprintf("pod %s %s=false", from, labelInject)}
	case "":
	default:
		warnings = append(warnings, fmt.Sprintf(`%s %s: value %q is neither "true" nor "false" and counts for nothing`, from, labelInject, value))
	}
	set := labels.Set(pod.Labels)
	for _, s := range in.never {
		if s.Matches(set) {
			return Decision{Reason: NeverSelector, Message: fmt.Sprintf("neverInjectSelector %q matches the pod's labels", s), Warnings: warnings}
		}
	}
	for _, s := range in.always {
		if s.Matches(set) {
			return Decision{Inject: true, Reason: ByAlwaysSelector, Message: fmt.Sprintf("alwaysInjectSelector %q matches the pod's labels", s), Warnings: warnings}
		}
	}
	if in.o.Policy == PolicyDisabled {
		return Decision{Reason: PolicyNeedsOptIn, Message: fmt.Sprintf("the injection policy is disabled: only pods with %s=true are injected", labelInject), Warnings: warnings}
	}
	asked.Warnings = warnings
	return asked
}
