package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	helm "helm.sh/helm/v4/pkg/release/v1"
)

// Removal is what an uninstallation would take away, and what it would leave behind. Show it to the user before Uninstall.
type Removal struct {
	Namespace string
	Revision  string // empty with Purge
	Purge     bool

	Releases   []string       // "istio-system/istiod", in the order in which they go
	Webhooks   []string       // injectors, tags included
	Validators []string       // checks of mesh objects
	Kinds      []string       // CRDs, with Purge
	Objects    map[string]int // the user's objects of these kinds, which go with them: kind -> number
	Pods       map[string]int // namespace -> pods that would be left without control plane
	Namespaces []string       // whose labels would mean nothing any more
	Stays      []string       // control planes that stay
	Foreign    []string       // those of another mesh: what both use stays too

	Heir string // the revision that then checks objects which name none; empty when that does not change

	releases []*helm.Release
	base     *helm.Release
	undoCNI  bool
}

// PlanRemoval finds out what goes: one revision, or everything with purge. What several revisions share goes with the last.
func (c *Cluster) PlanRemoval(ctx context.Context, namespace, revision string, purge bool) (*Removal, error) {
	if err := c.Reachable(); err != nil {
		return nil, err
	}
	all, err := c.releases(ctx, namespace)
	if err != nil {
		return nil, err
	}
	r := &Removal{Namespace: namespace, Revision: revision, Purge: purge, Objects: map[string]int{}, Pods: map[string]int{}}
	others := map[string]bool{}
	for _, rel := range all {
		if rel.Chart.Metadata.Name != "istiod" {
			continue
		}
		of, _ := rel.Config["revision"].(string)
		if !purge && suffix(of) != suffix(revision) {
			others[cmp.Or(of, "default")] = true
		}
	}
	shared := purge || len(others) == 0
	for _, rel := range all {
		of, _ := rel.Config["revision"].(string)
		switch rel.Chart.Metadata.Name {
		case "istiod", "gateway":
			if purge || suffix(of) == suffix(revision) {
				r.releases = append(r.releases, rel)
			}
		default:
			if shared {
				r.releases = append(r.releases, rel)
			}
		}
	}
	// Without any control plane, what an interrupted uninstallation left still goes.
	left := len(others) == 0 && len(r.releases) > 0
	if !purge && !left && !slices.ContainsFunc(r.releases, func(rel *helm.Release) bool { return rel.Chart.Metadata.Name == "istiod" }) {
		have := "weft is not installed there"
		if len(others) > 0 {
			have = "there is revision " + strings.Join(sortedNames(others), ", ")
		}
		return nil, fmt.Errorf("no control plane of revision %s in namespace %s: %s", cmp.Or(revision, "default"), namespace, have)
	}
	// Gateways first, they need the control plane; then the node agents, which undo their work; then the control plane; then the kinds.
	rank := map[string]int{"gateway": 0, "cni": 1, "istiod": 2, "base": 3}
	slices.SortStableFunc(r.releases, func(a, b *helm.Release) int {
		return rank[a.Chart.Metadata.Name] - rank[b.Chart.Metadata.Name]
	})
	for _, rel := range r.releases {
		r.Releases = append(r.Releases, rel.Namespace+"/"+rel.Name)
		r.undoCNI = r.undoCNI || rel.Chart.Metadata.Name == "cni"
	}
	r.Stays = sortedNames(others)
	r.inherit(all)
	return r, c.affected(ctx, r)
}

// inherit finds who checks objects that name no revision when the one that does goes.
func (r *Removal) inherit(all []*helm.Release) {
	i := slices.IndexFunc(all, func(rel *helm.Release) bool { return rel.Chart.Metadata.Name == "base" })
	if i < 0 || len(r.Stays) == 0 {
		return
	}
	checks, said := all[i].Config["defaultRevision"].(string)
	if said && checks == "" || suffix(checks) != suffix(r.Revision) {
		return
	}
	r.base, r.Heir = all[i], r.Stays[0]
}

// affected counts what depends on what goes.
func (c *Cluster) affected(ctx context.Context, r *Removal) error {
	planes, err := c.Revisions(ctx, "")
	if err != nil {
		return err
	}
	pods, err := c.meshPods(ctx)
	if err != nil {
		return err
	}
	goes := func(revision string) bool { return r.Purge || suffix(revision) == suffix(r.Revision) }
	foreign, theirs := map[string]bool{}, map[string]bool{} // revisions; Services
	for _, plane := range planes {
		switch {
		case plane.Foreign:
			r.Foreign = append(r.Foreign, plane.Namespace+"/"+plane.Revision)
			foreign[plane.Revision] = true
			theirs[plane.Namespace+"/istiod"+suffix(plane.Revision)] = true
		case goes(plane.Revision) && plane.Namespace == r.Namespace:
			r.Namespaces = append(r.Namespaces, plane.Namespaces...)
		}
	}
	for _, p := range pods {
		if (goes(p.revision) || len(r.Stays) == 0) && !p.gateway && !foreign[p.revision] {
			r.Pods[p.Namespace]++
		}
	}
	// goesToo: the control plane behind a webhook is one that goes, or was there once.
	goesToo := func(labels map[string]string, at admissionv1.WebhookClientConfig) bool {
		s := at.Service
		return goes(labels[revisionLabel]) && (s == nil && len(theirs) == 0 || s != nil && s.Namespace == r.Namespace && !theirs[s.Namespace+"/"+s.Name])
	}
	hooks, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: "app=sidecar-injector"})
	if err != nil {
		return fmt.Errorf("list webhooks: %w", err)
	}
	for _, h := range hooks.Items {
		if len(h.Webhooks) > 0 && goesToo(h.Labels, h.Webhooks[0].ClientConfig) {
			r.Webhooks = append(r.Webhooks, h.Name)
		}
	}
	validators, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return fmt.Errorf("list webhooks: %w", err)
	}
	for _, h := range validators.Items {
		if len(h.Webhooks) > 0 && goesToo(h.Labels, h.Webhooks[0].ClientConfig) {
			r.Validators = append(r.Validators, h.Name)
		}
	}
	if !r.Purge || len(r.Foreign) > 0 { // the other mesh needs them
		return nil
	}
	crds, err := c.Dynamic.Resource(crdResource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list CRDs: %w", err)
	}
	for _, crd := range crds.Items {
		group, _ := get(crd.Object, "spec", "group")
		text, _ := group.(string)
		if !slices.Contains(meshGroups, text) {
			continue
		}
		r.Kinds = append(r.Kinds, crd.GetName())
		kind, n, err := c.countOf(ctx, crd.Object)
		if err != nil {
			return err
		}
		if n > 0 && text != "install.istio.io" {
			r.Objects[kind] = n
		}
	}
	return nil
}

// meshGroups are the API groups whose definitions we bring.
var meshGroups = []string{"networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io", "install.istio.io"}

// UninstallOptions say how.
type UninstallOptions struct {
	Force    bool // go on when nodes cannot be undone
	Timeout  time.Duration
	Progress Progress
}

// Uninstall takes away what a removal names. It may be repeated: what is gone already is passed over. When ctx ends, the release
// being removed is finished, and nothing more is begun; the error is an [ErrInterrupted].
func (c *Cluster) Uninstall(ctx context.Context, r *Removal, o UninstallOptions) error {
	if o.Progress == nil {
		o.Progress = Silent{}
	}
	err := c.uninstall(ctx, r, o)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: from now on no new pod gets a sidecar, and some of the mesh is still there; run weft uninstall again to go on, or weft install to have it back", ErrInterrupted)
	}
	return err
}

func (c *Cluster) uninstall(ctx context.Context, r *Removal, o UninstallOptions) error {
	// Webhooks before all else, whoever has them by now: with failurePolicy Fail, nothing of the mesh could be created once weftd is gone.
	for _, name := range r.Webhooks {
		if err := ignoreMissing(c.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(ctx, name, metav1.DeleteOptions{})); err != nil {
			return fmt.Errorf("delete webhook %s: %w", name, err)
		}
	}
	for _, name := range r.Validators {
		if err := ignoreMissing(c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(ctx, name, metav1.DeleteOptions{})); err != nil {
			return fmt.Errorf("delete webhook %s: %w", name, err)
		}
	}
	for _, rel := range r.releases {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := "Helm release " + rel.Name
		began := time.Now()
		if rel.Chart.Metadata.Name == "cni" {
			if err := c.undoNodes(ctx, rel, o); err != nil {
				o.Progress.Failed("Node agents", time.Since(began))
				return err
			}
		}
		o.Progress.Begin(name, "removing")
		if err := c.removeRelease(ctx, rel, o.Timeout); err != nil {
			o.Progress.Failed(name, time.Since(began))
			return err
		}
		o.Progress.Done(name, time.Since(began))
	}
	if len(r.Stays) == 0 {
		if err := c.forget(ctx, r.Namespace); err != nil {
			return err
		}
	}
	if r.Purge {
		return c.purge(ctx, r, o)
	}
	if r.Heir != "" {
		if err := c.bequeath(ctx, r, o); err != nil {
			return err
		}
	}
	err := c.Dynamic.Resource(operatorResource).Namespace(r.Namespace).Delete(ctx, stateName(r.Revision), metav1.DeleteOptions{})
	return ignoreMissing(err)
}

// removeRelease is helm uninstall, and waits until the pods are gone.
func (c *Cluster) removeRelease(ctx context.Context, rel *helm.Release, limit time.Duration) error {
	cfg, err := c.helmIn(rel.Namespace)
	if err != nil {
		return err
	}
	u := action.NewUninstall(cfg)
	u.WaitStrategy, u.Timeout, u.IgnoreNotFound = kube.HookOnlyStrategy, requestTimeout, true
	u.DeletionPropagation = "background"
	if _, err := u.Run(rel.Name); err != nil {
		return fmt.Errorf("release %s of Helm: %w", rel.Name, err)
	}
	objects, err := objectsOf(rel.Manifest, rel.Namespace)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, max(limit, requestTimeout))
	defer cancel()
	for _, o := range objects {
		if o.Kind != "Deployment" && o.Kind != "DaemonSet" {
			continue
		}
		labels, _ := get(o.tree, "spec", "selector", "matchLabels")
		var parts []string
		for _, k := range sortedKeys(asTree(labels)) {
			parts = append(parts, fmt.Sprintf("%s=%v", k, asTree(labels)[k]))
		}
		for {
			pods, err := c.CoreV1().Pods(o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: strings.Join(parts, ",")})
			if err == nil && !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return !ownedByOther(&p, o.Kind, o.Name) }) {
				break
			}
			if pause(ctx, lookEvery) != nil {
				return fmt.Errorf("the pods of %s do not end: kubectl get pods -n %s -l %s", o, o.Namespace, strings.Join(parts, ","))
			}
		}
	}
	return nil
}

// undoNodes lets the node agents take back what they did to their nodes. The chart knows how: the agents run on as
// "weft-node uninstall --stay", and are ready when their node is as it was.
func (c *Cluster) undoNodes(ctx context.Context, rel *helm.Release, o UninstallOptions) error {
	const component = "Node agents"
	began := time.Now()
	cfg, err := c.helmIn(rel.Namespace)
	if err != nil {
		return err
	}
	if _, err := c.takeOver(ctx, cfg, rel.Name, Options{Progress: o.Progress}); err != nil {
		return err
	}
	o.Progress.Begin(component, "telling them to undo their work")
	undone, err := revalue(ctx, cfg, rel, Tree{"cni": Tree{"uninstall": true}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	err = c.waitReady(ctx, &Plan{Wanted: &Wanted{Namespace: rel.Namespace}}, undone.Manifest, func(doing string) { o.Progress.Begin(component, "undoing: "+doing) })
	switch {
	case err == nil:
		o.Progress.Done(component, time.Since(began))
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return err
	case o.Force:
		o.Progress.Note("some nodes keep the CNI plugin and its entry, which let pods without the mesh's annotation pass: " + err.Error())
		return nil
	}
	return fmt.Errorf("not all nodes are as they were before the mesh: %w\nThe mesh's plugin lets pods without its annotation pass, so the nodes stay usable. "+
		"Go on without them with --force, or bring the nodes back and run weft uninstall again", err)
}

// revalue upgrades a release with its own chart and some values laid over its own.
func revalue(ctx context.Context, cfg *action.Configuration, rel *helm.Release, values Tree) (*helm.Release, error) {
	up := action.NewUpgrade(cfg)
	up.Namespace, up.ResetValues, up.WaitStrategy, up.Timeout = rel.Namespace, true, kube.HookOnlyStrategy, requestTimeout
	up.ForceConflicts, up.ServerSideApply, up.DisableOpenAPIValidation = true, "true", true
	got, err := up.RunWithContext(context.WithoutCancel(ctx), rel.Name, rel.Chart, merge(rel.Config, values))
	return result(got, Release{Name: rel.Name, Namespace: rel.Namespace}, err)
}

// bequeath makes another revision check the objects that name none.
func (c *Cluster) bequeath(ctx context.Context, r *Removal, o UninstallOptions) error {
	const component = "Check of mesh objects"
	began := time.Now()
	o.Progress.Begin(component, "moving to revision "+r.Heir)
	cfg, err := c.helmIn(r.base.Namespace)
	if err != nil {
		return err
	}
	rel, err := c.takeOver(ctx, cfg, r.base.Name, Options{Progress: o.Progress})
	if err == nil && rel != nil {
		_, err = revalue(ctx, cfg, rel, Tree{"defaultRevision": r.Heir})
	}
	if err != nil {
		return err
	}
	o.Progress.Note(fmt.Sprintf("✔ %s moved to revision %s (%.1f s)", component, r.Heir, time.Since(began).Seconds()))
	return nil
}

func ignoreMissing(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
