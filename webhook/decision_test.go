package webhook

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Istio's tables: https://istio.io/latest/docs/setup/additional-setup/sidecar-injection and its webhook configurations.
func TestDecisionIsIstios(t *testing.T) {
	type m = map[string]string
	canary := Options{Revision: "canary", Tags: []string{"prod-next"}}
	tagged := Options{Revision: "1-20", Tags: []string{"default"}}
	selectors := Options{
		NeverInject:  []metav1.LabelSelector{{MatchLabels: m{"job": "batch"}}, {}},
		AlwaysInject: []metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "always", Operator: metav1.LabelSelectorOpExists}}}},
	}
	optIn := selectors
	optIn.Policy = PolicyDisabled
	for name, c := range map[string]struct {
		o                Options
		namespace        string
		ns, labels, anns m
		spec             corev1.PodSpec
		inject           bool
		reason           Reason
	}{
		"namespace enabled":                    {ns: m{"istio-injection": "enabled"}, inject: true, reason: ByNamespaceLabel},
		"namespace disabled":                   {ns: m{"istio-injection": "disabled"}, reason: NamespaceOptedOut},
		"namespace disabled, pod label true":   {ns: m{"istio-injection": "disabled"}, labels: m{"sidecar.istio.io/inject": "true"}, reason: NamespaceOptedOut},
		"wrong label value":                    {ns: m{"istio-injection": "true"}, reason: NamespaceOptedOut},
		"no label":                             {reason: NamespaceNoLabel},
		"no label, pod label true":             {labels: m{"sidecar.istio.io/inject": "true"}, inject: true, reason: ByPodLabel},
		"no label, pod annotation true":        {anns: m{"sidecar.istio.io/inject": "true"}, reason: NamespaceNoLabel},
		"enabled, pod annotation false":        {ns: m{"istio-injection": "enabled"}, anns: m{"sidecar.istio.io/inject": "false"}, reason: PodOptedOut},
		"enabled, pod label false":             {ns: m{"istio-injection": "enabled"}, labels: m{"sidecar.istio.io/inject": "false"}, reason: PodOptedOut},
		"enabled, label true annotation false": {ns: m{"istio-injection": "enabled"}, labels: m{"sidecar.istio.io/inject": "true"}, anns: m{"sidecar.istio.io/inject": "false"}, inject: true, reason: ByPodLabel},
		"enabled, label false annotation true": {ns: m{"istio-injection": "enabled"}, labels: m{"sidecar.istio.io/inject": "false"}, anns: m{"sidecar.istio.io/inject": "true"}, reason: PodOptedOut},
		"enabled, label nonsense":              {ns: m{"istio-injection": "enabled"}, labels: m{"sidecar.istio.io/inject": "yes"}, inject: true, reason: ByNamespaceLabel},
		"revision of the namespace":            {o: canary, ns: m{"istio.io/rev": "canary"}, inject: true, reason: ByNamespaceRevision},
		"tag of the namespace":                 {o: canary, ns: m{"istio.io/rev": "prod-next"}, inject: true, reason: ByNamespaceRevision},
		"other revision":                       {o: canary, ns: m{"istio.io/rev": "stable"}, reason: OtherRevision},
		"enabled belongs to the default":       {o: canary, ns: m{"istio-injection": "enabled"}, reason: OtherRevision},
		"default by tag":                       {o: tagged, ns: m{"istio-injection": "enabled"}, inject: true, reason: ByNamespaceLabel},
		"enabled wins over another revision":   {ns: m{"istio-injection": "enabled", "istio.io/rev": "canary"}, inject: true, reason: ByNamespaceLabel},
		"revision of the pod":                  {o: canary, labels: m{"istio.io/rev": "canary"}, inject: true, reason: ByPodRevision},
		"other revision of the pod":            {labels: m{"istio.io/rev": "canary", "sidecar.istio.io/inject": "true"}, reason: OtherRevision},
		"never selector":                       {o: selectors, ns: m{"istio-injection": "enabled"}, labels: m{"job": "batch"}, reason: NeverSelector},
		"never selector, pod label true":       {o: selectors, ns: m{"istio-injection": "enabled"}, labels: m{"job": "batch", "sidecar.istio.io/inject": "true"}, inject: true, reason: ByPodLabel},
		"policy disabled":                      {o: optIn, ns: m{"istio-injection": "enabled"}, reason: PolicyNeedsOptIn},
		"policy disabled, always selector":     {o: optIn, ns: m{"istio-injection": "enabled"}, labels: m{"always": ""}, inject: true, reason: ByAlwaysSelector},
		"policy disabled, annotation":          {o: optIn, ns: m{"istio-injection": "enabled"}, anns: m{"sidecar.istio.io/inject": "true"}, inject: true, reason: ByPodAnnotation},
		"never wins over always":               {o: optIn, ns: m{"istio-injection": "enabled"}, labels: m{"job": "batch", "always": ""}, reason: NeverSelector},
		"host network":                         {ns: m{"istio-injection": "enabled"}, spec: corev1.PodSpec{HostNetwork: true}, reason: HostNetwork},
		"host network, pod label true":         {labels: m{"sidecar.istio.io/inject": "true"}, spec: corev1.PodSpec{HostNetwork: true}, reason: HostNetwork},
		"windows":                              {ns: m{"istio-injection": "enabled"}, spec: corev1.PodSpec{NodeSelector: m{"kubernetes.io/os": "windows"}}, reason: Windows},
		"kube-system":                          {namespace: "kube-system", ns: m{"istio-injection": "enabled"}, labels: m{"sidecar.istio.io/inject": "true"}, reason: SystemNamespace},
		"control plane":                        {namespace: "istio-system", ns: m{"istio-injection": "enabled"}, reason: SystemNamespace},
		"gateway beside the control plane":     {namespace: "istio-system", labels: m{"sidecar.istio.io/inject": "true"}, inject: true, reason: ByPodLabel},
		"root namespace elsewhere":             {o: Options{RootNamespace: "mesh"}, namespace: "mesh", ns: m{"istio-injection": "enabled"}, reason: SystemNamespace},
		"istio-system is nothing special then": {o: Options{RootNamespace: "mesh"}, namespace: "istio-system", ns: m{"istio-injection": "enabled"}, inject: true, reason: ByNamespaceLabel},
	} {
		t.Run(name, func(t *testing.T) {
			if c.namespace == "" {
				c.namespace = "default"
			}
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: c.labels, Annotations: c.anns}, Spec: c.spec}
			d := newInjector(t, c.o).Decide(pod, c.namespace, c.ns)
			if d.Inject != c.inject || d.Reason != c.reason {
				t.Errorf("inject=%v because of %s (%s), want %v because of %s", d.Inject, d.Reason, d.Message, c.inject, c.reason)
			}
			if d.Message == "" {
				t.Error("no words for the user")
			}
			if strings.Contains(name, "nonsense") != (len(d.Warnings) > 0) {
				t.Errorf("warnings %q", d.Warnings)
			}
		})
	}
}

func TestTheOwnerIsWhatAPersonThinksOf(t *testing.T) {
	yes := true
	ref := func(api, kind, name string) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: api, Kind: kind, Name: name, Controller: &yes}}
	}
	for _, c := range []struct {
		pod  metav1.ObjectMeta
		want string
	}{
		{metav1.ObjectMeta{Name: "alone"}, "kubernetes://apis/v1/namespaces/ns/pods/alone"},
		{metav1.ObjectMeta{GenerateName: "some-"}, "kubernetes://apis/v1/namespaces/ns/pods/some"},
		{metav1.ObjectMeta{Labels: map[string]string{"pod-template-hash": "abc"}, OwnerReferences: ref("apps/v1", "ReplicaSet", "web-abc")}, "kubernetes://apis/apps/v1/namespaces/ns/deployments/web"},
		{metav1.ObjectMeta{OwnerReferences: ref("apps/v1", "ReplicaSet", "bare")}, "kubernetes://apis/apps/v1/namespaces/ns/replicasets/bare"},
		{metav1.ObjectMeta{OwnerReferences: ref("apps/v1", "StatefulSet", "db")}, "kubernetes://apis/apps/v1/namespaces/ns/statefulsets/db"},
		{metav1.ObjectMeta{OwnerReferences: ref("batch/v1", "Job", "nightly-29017500")}, "kubernetes://apis/batch/v1/namespaces/ns/cronjobs/nightly"},
		{metav1.ObjectMeta{OwnerReferences: ref("batch/v1", "Job", "migrate-7")}, "kubernetes://apis/batch/v1/namespaces/ns/jobs/migrate-7"},
		{metav1.ObjectMeta{Labels: map[string]string{"deploymentconfig": "old"}, OwnerReferences: ref("v1", "ReplicationController", "old-3")}, "kubernetes://apis/apps.openshift.io/v1/namespaces/ns/deploymentconfigs/old"},
	} {
		if got := ownerOf(&corev1.Pod{ObjectMeta: c.pod}).uid("ns"); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}
