package main

import (
	"bytes"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/identity"
)

// Two revisions side by side are two control planes of one mesh: one authority, and each its own webhooks, settings and lease.
func TestTwoRevisionsShareTheMeshAndNothingElse(t *testing.T) {
	api := newCluster(t)
	api.InstallDefinitions()
	const canary = "{revision: canary, revisionTags: [prod], meshConfig: {accessLogFile: /dev/stdout}}"
	install(t, api, deploy.Istiod, canary, "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap")
	install(t, api, deploy.Base, "", "ValidatingWebhookConfiguration")
	install(t, api, deploy.Istiod, "", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
	install(t, api, deploy.Istiod, canary, "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
	a, b := startReplica(t, api, 20000), startReplicaAs(t, api, "istiod-canary", 21000, "--revision", "canary")
	eventually(t, "both are ready", func() bool { return a.ready() && b.ready() })

	c := api.Client()
	roots := get[corev1.Secret](c, "istio-system", "istio-ca-secret").Data[identity.RootKey]
	if !a.servesUnder(roots) || !b.servesUnder(roots) {
		t.Error("the revisions do not share the authority")
	}
	for _, name := range []string{"istio-sidecar-injector", "istio-sidecar-injector-canary", "istio-revision-tag-prod"} {
		eventually(t, "the API server trusts "+name, func() bool {
			w := get[admissionv1.MutatingWebhookConfiguration](c, "", name)
			for _, h := range w.Webhooks {
				if !bytes.Equal(h.ClientConfig.CABundle, roots) {
					return false
				}
			}
			return len(w.Webhooks) > 0
		})
	}
	for _, name := range []string{"istiod-default-validator", "istio-validator-istio-system", "istio-validator-canary-istio-system"} {
		eventually(t, name+" is closed", func() bool {
			w := get[admissionv1.ValidatingWebhookConfiguration](c, "", name).Webhooks[0]
			return *w.FailurePolicy == admissionv1.Fail && bytes.Equal(w.ClientConfig.CABundle, roots)
		})
	}
	for lease, holder := range map[string]string{"weftd-default": "istiod-20000", "weftd-canary": "istiod-21000"} {
		eventually(t, lease+" is held by its revision", func() bool {
			l := get[coordinationv1.Lease](c, "istio-system", lease)
			return l != nil && l.Spec.HolderIdentity != nil && strings.HasPrefix(*l.Spec.HolderIdentity, holder)
		})
	}
	eventually(t, "the root is in every namespace", func() bool {
		m := get[corev1.ConfigMap](c, "default", "istio-ca-root-cert")
		return m != nil && m.Data[identity.RootKey] == string(roots)
	})
	writes := get[corev1.ConfigMap](c, "default", "istio-ca-root-cert").ResourceVersion

	// The old revision goes; the other one keeps the mesh's root where it is needed.
	a.cmd.Process.Kill()
	<-a.done
	api.Apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: later}")
	eventually(t, "a namespace of the new revision has the root", func() bool { return get[corev1.ConfigMap](c, "later", "istio-ca-root-cert") != nil })
	if now := get[corev1.ConfigMap](c, "default", "istio-ca-root-cert").ResourceVersion; now != writes {
		t.Error("the revisions write over one another")
	}
	if lines := refusals(t, api); len(lines) > 0 {
		t.Errorf("refused:\n%s", strings.Join(lines, "\n"))
	}
}
