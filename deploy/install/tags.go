package install

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Tag is a name that namespaces use in istio.io/rev, and that means a revision: a webhook configuration of its own.
type Tag struct {
	Tag        string   `json:"tag"`
	Revision   string   `json:"revision"`
	Namespaces []string `json:"namespaces"`
	Proxies    int      `json:"proxies"`
	Webhook    string   `json:"webhook"`
}

const tagLabel, revisionLabel = "istio.io/tag", "istio.io/rev"

// Tags lists all tags.
func (c *Cluster) Tags(ctx context.Context) ([]Tag, error) {
	hooks, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: tagLabel})
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", c.unreachable(err))
	}
	namespaces, err := c.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	pods, err := c.meshPods(ctx)
	if err != nil {
		return nil, err
	}
	var out []Tag
	for _, h := range hooks.Items {
		t := Tag{Tag: h.Labels[tagLabel], Revision: h.Labels[revisionLabel], Webhook: h.Name}
		for _, ns := range namespaces.Items {
			if ns.Labels[revisionLabel] == t.Tag || t.Tag == "default" && ns.Labels["istio-injection"] == "enabled" {
				t.Namespaces = append(t.Namespaces, ns.Name)
			}
		}
		for _, p := range pods {
			if slices.Contains(t.Namespaces, p.Namespace) {
				t.Proxies++
			}
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Tag) int { return strings.Compare(a.Tag, b.Tag) })
	return out, nil
}

// MakeTag is the webhook configuration of a tag: the revision's own, with the tag's name in the selectors. The tag "default" is
// also what istio-injection=enabled means.
func (c *Cluster) MakeTag(ctx context.Context, tag, revision string) (*admissionv1.MutatingWebhookConfiguration, error) {
	if err := checkRevision(tag); err != nil || tag == "" {
		return nil, fmt.Errorf("tag %q: want lower-case letters, digits and dashes", tag)
	}
	planes, err := c.Revisions(ctx, "")
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(planes, func(r Revision) bool { return r.Revision == tag }); i >= 0 && tag != "default" {
		return nil, fmt.Errorf("%q is a revision: a tag needs another name, since namespaces could not say which is meant", tag)
	}
	hook, err := c.webhookOf(ctx, revision)
	if err != nil {
		return nil, err
	}
	out := &admissionv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: tagWebhook(tag, hook), Labels: map[string]string{"app": "sidecar-injector", "app.kubernetes.io/managed-by": "weft", revisionLabel: revision, tagLabel: tag}},
	}
	for _, h := range hook.Webhooks {
		h = *h.DeepCopy()
		if !tagged(&h, tag) {
			continue // it selects by the older labels, which only the tag "default" takes over
		}
		out.Webhooks = append(out.Webhooks, h)
	}
	if tag == "default" {
		out.Webhooks = append(out.Webhooks, unnamed(out.Webhooks)...)
	}
	if len(out.Webhooks) == 0 {
		return nil, fmt.Errorf("webhook configuration %s has no webhook for the label %s: weft install puts it back", hook.Name, revisionLabel)
	}
	return out, nil
}

// tagWebhook names a tag's webhook configuration, as the chart's value revisionTags does.
func tagWebhook(tag string, of *admissionv1.MutatingWebhookConfiguration) string {
	name := "istio-revision-tag-" + tag
	for _, h := range of.Webhooks {
		if s := h.ClientConfig.Service; s != nil && s.Namespace != DefaultNamespace {
			return name + "-" + s.Namespace
		}
	}
	return name
}

// tagged puts the tag where a webhook's selectors name the revision; false when they do not.
func tagged(h *admissionv1.MutatingWebhook, tag string) bool {
	found := false
	for _, s := range []*metav1.LabelSelector{h.NamespaceSelector, h.ObjectSelector} {
		if s == nil {
			continue
		}
		for i, e := range s.MatchExpressions {
			if e.Key == revisionLabel && e.Operator == metav1.LabelSelectorOpIn {
				s.MatchExpressions[i].Values, found = []string{tag}, true
			}
		}
		if _, ok := s.MatchLabels[revisionLabel]; ok {
			s.MatchLabels[revisionLabel], found = tag, true
		}
	}
	return found
}

// unnamed makes of the webhooks for istio.io/rev those for istio-injection=enabled and sidecar.istio.io/inject=true.
func unnamed(named []admissionv1.MutatingWebhook) []admissionv1.MutatingWebhook {
	if len(named) == 0 {
		return nil
	}
	is := func(key string, values ...string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: values}
	}
	none := func(key string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}
	}
	var system []metav1.LabelSelectorRequirement // namespaces that the revision's webhooks leave out
	for _, e := range named[0].NamespaceSelector.MatchExpressions {
		if e.Key == "kubernetes.io/metadata.name" {
			system = append(system, e)
		}
	}
	byNamespace, byPod := *named[0].DeepCopy(), *named[0].DeepCopy()
	byNamespace.Name = "namespace.sidecar-injector.istio.io"
	byNamespace.NamespaceSelector = &metav1.LabelSelector{MatchExpressions: append([]metav1.LabelSelectorRequirement{is("istio-injection", "enabled")}, system...)}
	byNamespace.ObjectSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "sidecar.istio.io/inject", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"false"}}}}
	byPod.Name = "object.sidecar-injector.istio.io"
	byPod.NamespaceSelector = &metav1.LabelSelector{MatchExpressions: append([]metav1.LabelSelectorRequirement{none("istio-injection"), none(revisionLabel)}, system...)}
	byPod.ObjectSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{is("sidecar.istio.io/inject", "true"), none(revisionLabel)}}
	return []admissionv1.MutatingWebhook{byNamespace, byPod}
}

// SetTag writes a tag. An existing one is moved only with overwrite. For the tag "default", the default revision's own webhooks
// for the older labels go, so that no pod is injected twice.
func (c *Cluster) SetTag(ctx context.Context, hook *admissionv1.MutatingWebhookConfiguration, overwrite bool) error {
	api := c.AdmissionregistrationV1().MutatingWebhookConfigurations()
	was, err := api.Get(ctx, hook.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = api.Create(ctx, hook, metav1.CreateOptions{FieldManager: "weft"})
	case err == nil && !overwrite && was.Labels[revisionLabel] != hook.Labels[revisionLabel]:
		return fmt.Errorf("tag %s means revision %s: move it with --overwrite", hook.Labels[tagLabel], was.Labels[revisionLabel])
	case err == nil:
		next := was.DeepCopy()
		if next.Labels == nil {
			next.Labels = map[string]string{}
		}
		maps.Copy(next.Labels, hook.Labels)
		next.Webhooks = hook.Webhooks
		_, err = api.Update(ctx, next, metav1.UpdateOptions{FieldManager: "weft"})
	}
	if err != nil {
		return fmt.Errorf("write tag %s: %w", hook.Labels[tagLabel], err)
	}
	if hook.Labels[tagLabel] != "default" {
		return nil
	}
	own, err := c.webhookOf(ctx, "default")
	if err != nil {
		return nil // no default revision, no older labels to take over
	}
	next := own.DeepCopy()
	next.Webhooks = slices.DeleteFunc(next.Webhooks, func(h admissionv1.MutatingWebhook) bool { return !tagged(h.DeepCopy(), "x") })
	if len(next.Webhooks) == len(own.Webhooks) {
		return nil
	}
	if _, err := api.Update(ctx, next, metav1.UpdateOptions{FieldManager: "weft"}); err != nil {
		return fmt.Errorf("take the older labels from webhook configuration %s: %w", own.Name, err)
	}
	return nil
}

// FindTag reads a tag.
func (c *Cluster) FindTag(ctx context.Context, tag string) (*Tag, error) {
	all, err := c.Tags(ctx)
	if err != nil {
		return nil, err
	}
	var have []string
	for i, t := range all {
		if t.Tag == tag {
			return &all[i], nil
		}
		have = append(have, t.Tag)
	}
	if len(have) == 0 {
		return nil, fmt.Errorf("there is no tag %q: there are none", tag)
	}
	return nil, fmt.Errorf("there is no tag %q: there is %s", tag, strings.Join(have, ", "))
}

// RemoveTag removes a tag; new pods of namespaces that use it get no sidecar any more.
func (c *Cluster) RemoveTag(ctx context.Context, t *Tag) error {
	return c.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(ctx, t.Webhook, metav1.DeleteOptions{})
}
