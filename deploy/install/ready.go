package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const lookEvery = 250 * time.Millisecond

// object is a manifest's object by name.
type object struct {
	Kind, Namespace, Name string
	tree                  Tree
}

func (o object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// objectsOf reads a rendered manifest.
func objectsOf(manifest, namespace string) ([]object, error) {
	trees, err := readObjects([]byte(manifest))
	if err != nil {
		return nil, err
	}
	var out []object
	for _, t := range trees {
		o := object{tree: t}
		o.Kind, _ = t["kind"].(string)
		if v, ok := get(t, "metadata", "name"); ok {
			o.Name, _ = v.(string)
		}
		if v, ok := get(t, "metadata", "namespace"); ok {
			o.Namespace, _ = v.(string)
		} else if namespaced(o.Kind) {
			o.Namespace = namespace
		}
		out = append(out, o)
	}
	return out, nil
}

// namespaced knows the kinds that the charts make.
func namespaced(kind string) bool {
	switch kind {
	case "Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
		"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "PriorityClass", "ClusterTrustBundle", "IngressClass", "GatewayClass":
		return false
	}
	return true
}

// unready is why an object is not ready, and how to look closer.
type unready struct {
	object object
	why    string
	pods   *metav1.LabelSelector // of a workload
}

// waitReady waits until everything in a manifest that can be unready is ready. When ctx ends before, the error says what is wrong
// and what to do.
func (c *Cluster) waitReady(ctx context.Context, p *Plan, manifest string, doing func(string)) error {
	objects, err := objectsOf(manifest, p.Namespace)
	if err != nil {
		return err
	}
	// The base chart's webhook is the default revision's, which need not be there.
	objects = slices.DeleteFunc(objects, func(o object) bool {
		rev, ok := get(o.tree, "metadata", "labels", "istio.io/rev")
		return ok && strings.HasSuffix(o.Kind, "WebhookConfiguration") && rev != p.Revisioned()
	})
	var open []unready
	for {
		next, err := c.notReady(ctx, objects)
		switch {
		case err != nil && ctx.Err() == nil:
			doing("asking the API server again: " + err.Error()) // it may be restarting
		case err == nil && len(next) == 0:
			return nil
		case err == nil:
			open = next
			var text []string
			for _, u := range open {
				text = append(text, u.object.Name+": "+u.why)
			}
			doing(strings.Join(text, "; "))
		}
		if pause(ctx, lookEvery) != nil {
			break
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if len(open) == 0 {
		return errors.New("the API server did not answer")
	}
	return c.diagnose(open)
}

// notReady lists what is not ready yet.
func (c *Cluster) notReady(ctx context.Context, objects []object) ([]unready, error) {
	var out []unready
	for _, o := range objects {
		u, err := c.stateOf(ctx, o)
		if apierrors.IsNotFound(err) {
			out = append(out, unready{object: o, why: "it does not exist"})
			continue
		}
		if err != nil {
			return nil, err
		}
		if u.why != "" {
			out = append(out, u)
		}
	}
	return out, nil
}

// stateOf judges one object; kinds without a readiness are ready.
func (c *Cluster) stateOf(ctx context.Context, o object) (unready, error) {
	u := unready{object: o}
	switch o.Kind {
	case "Deployment":
		d, err := c.AppsV1().Deployments(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
		if err != nil {
			return u, err
		}
		u.pods, u.why = d.Spec.Selector, deploymentState(d)
	case "DaemonSet":
		d, err := c.AppsV1().DaemonSets(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
		if err != nil {
			return u, err
		}
		u.pods, u.why = d.Spec.Selector, daemonSetState(d)
	case "MutatingWebhookConfiguration":
		w, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, o.Name, metav1.GetOptions{})
		if err != nil {
			return u, err
		}
		for _, h := range w.Webhooks {
			if len(h.ClientConfig.CABundle) == 0 {
				u.why = "the control plane has not written its certificate authority into it yet"
			}
		}
	case "ValidatingWebhookConfiguration":
		w, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, o.Name, metav1.GetOptions{})
		if err != nil {
			return u, err
		}
		for _, h := range w.Webhooks {
			if len(h.ClientConfig.CABundle) == 0 {
				u.why = "the control plane has not written its certificate authority into it yet"
			}
		}
	}
	return u, nil
}

// deploymentState is empty when the newest pods serve and the old ones are gone.
func deploymentState(d *appsv1.Deployment) string {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	switch {
	case s.ObservedGeneration < d.Generation:
		return "the cluster has not looked at it yet (is kube-controller-manager up?)"
	case want == 0:
		return "it is scaled to 0, so nothing serves (weft install, or kubectl scale, starts it again)"
	case s.UpdatedReplicas < want:
		return fmt.Sprintf("%d of %d new pods made", s.UpdatedReplicas, want)
	case s.AvailableReplicas < want:
		return fmt.Sprintf("%d of %d pods ready", s.AvailableReplicas, want)
	case s.Replicas > s.UpdatedReplicas:
		return fmt.Sprintf("%d old pods are ending", s.Replicas-s.UpdatedReplicas)
	}
	return ""
}

// daemonSetState is empty when each node that should has a ready pod of the newest kind.
func daemonSetState(d *appsv1.DaemonSet) string {
	s := d.Status
	switch {
	case s.ObservedGeneration < d.Generation:
		return "the cluster has not looked at it yet (is kube-controller-manager up?)"
	case s.UpdatedNumberScheduled < s.DesiredNumberScheduled:
		return fmt.Sprintf("new on %d of %d nodes", s.UpdatedNumberScheduled, s.DesiredNumberScheduled)
	case s.NumberAvailable < s.DesiredNumberScheduled:
		return fmt.Sprintf("ready on %d of %d nodes", s.NumberAvailable, s.DesiredNumberScheduled)
	}
	return ""
}

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// waitForKinds waits until the API server serves the CRDs of the base chart.
func (c *Cluster) waitForKinds(ctx context.Context, p *Plan, limit time.Duration) error {
	if !p.has(Base) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, min(limit, time.Minute))
	defer cancel()
	for {
		list, err := c.Dynamic.Resource(crdResource).List(ctx, metav1.ListOptions{})
		var open []string
		if err == nil {
			for _, crd := range list.Items {
				group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
				if strings.HasSuffix(group, ".istio.io") && !established(&crd) {
					open = append(open, crd.GetName())
				}
			}
			if len(open) == 0 {
				return nil
			}
		}
		if pause(ctx, lookEvery) != nil {
			if err != nil {
				return fmt.Errorf("read CRDs: %w", c.unreachable(err))
			}
			return fmt.Errorf("the API server does not serve %s: kubectl describe crd says why", strings.Join(open, ", "))
		}
	}
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, v := range conditions {
		if m, ok := v.(map[string]any); ok && m["type"] == "Established" {
			return m["status"] == string(corev1.ConditionTrue)
		}
	}
	return false
}
