package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	helm "helm.sh/helm/v4/pkg/release/v1"
)

// Options of Install.
type Options struct {
	DryRun        bool // ask the API server, change nothing
	Wait          bool // until everything is ready
	Timeout       time.Duration
	Force         bool // also over another mesh's releases
	TakeOwnership bool // of objects that exist and belong to nobody
	MoveGateways  bool // gateways of another revision come to this one
	Progress      Progress
}

// Result is what an installation did.
type Result struct {
	Releases []*helm.Release
	Kept     []string // what stays with another mesh or revision
	later    []string // manifests whose readiness the control plane brings about
}

// Install brings the cluster to the plan. It may be repeated at any time, and goes on where an earlier one stopped: each release is
// brought to what it should be. When ctx ends, the release being written is finished, nothing more is begun, and the error, an
// [ErrInterrupted], says how far it came.
func (c *Cluster) Install(ctx context.Context, p *Plan, o Options) (*Result, error) {
	if o.Progress == nil {
		o.Progress = Silent{}
	}
	out := &Result{}
	err := c.install(ctx, p, o, out)
	if err != nil && ctx.Err() != nil {
		return out, interrupted(p, out)
	}
	return out, err
}

func (c *Cluster) install(ctx context.Context, p *Plan, o Options, out *Result) error {
	if err := c.Reachable(); err != nil {
		return err
	}
	beside, err := c.settle(ctx, p, o)
	if err != nil {
		return err
	}
	if err := beside.refuse(); err != nil && !o.Force {
		return err
	}
	for _, ns := range p.namespaces() {
		if err := c.ensureNamespace(ctx, ns, p, o); err != nil {
			return err
		}
	}
	out.Kept = beside.stays(p)
	// Base first: it has the kinds. Control plane and node agent then come up side by side. Gateways last: they are injected.
	for _, stage := range [][]string{{Base}, {Pilot, CNI}, {Ingress, Egress}} {
		if err := c.stage(ctx, p, stage, o, out); err != nil {
			return err
		}
	}
	if o.DryRun {
		return nil
	}
	return c.record(ctx, p)
}

// namespaces that the releases go to, the control plane's first.
func (p *Plan) namespaces() []string {
	out := []string{p.Namespace}
	for _, r := range p.Releases {
		if !slices.Contains(out, r.Namespace) {
			out = append(out, r.Namespace)
		}
	}
	return out
}

// ensureNamespace makes a namespace that is missing. The control plane's must let the node agent in, which needs what no
// restricted pod may have.
func (c *Cluster) ensureNamespace(ctx context.Context, name string, p *Plan, o Options) error {
	network, _ := get(p.Tree, "spec", "values", "global", "network")
	networkName, _ := network.(string)
	ns, err := c.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		made := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		if name == p.Namespace {
			made.Labels["pod-security.kubernetes.io/enforce"] = "privileged"
			if networkName != "" {
				made.Labels["topology.istio.io/network"] = networkName
			}
		}
		if o.DryRun {
			o.Progress.Note("namespace " + name + " would be made; what goes into it could not be tried")
			return nil
		}
		if _, err = c.CoreV1().Namespaces().Create(ctx, made, metav1.CreateOptions{FieldManager: "weft"}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("make namespace %s: %w", name, c.unreachable(err))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", name, c.unreachable(err))
	}
	if ns.DeletionTimestamp != nil {
		return fmt.Errorf("namespace %s is being deleted: wait until it is gone, then install again", name)
	}
	if level := ns.Labels["pod-security.kubernetes.io/enforce"]; name == p.Namespace && p.has(CNI) && (level == "restricted" || level == "baseline") {
		return fmt.Errorf("namespace %s enforces Pod Security %q, and the node agent needs more (docs/node.md says what and why): "+
			"kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged --overwrite", name, level, name)
	}
	return nil
}

func (p *Plan) has(component string) bool {
	return slices.ContainsFunc(p.Releases, func(r Release) bool { return r.Component == component })
}

// stage applies the releases of some components, then waits for them side by side.
func (c *Cluster) stage(ctx context.Context, p *Plan, components []string, o Options, out *Result) error {
	type waiting struct {
		component string
		manifests []string
		begun     time.Time
	}
	var all []waiting
	for _, component := range components {
		w := waiting{component: component, begun: time.Now()}
		for _, r := range p.Releases {
			if r.Component != component {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			o.Progress.Begin(component, "writing Helm release "+r.Name)
			rel, err := c.apply(ctx, r, o)
			if err != nil {
				o.Progress.Failed(component, time.Since(w.begun))
				return c.unreachable(err)
			}
			if !o.DryRun {
				if err := c.scaleUp(ctx, rel.Manifest, r.Namespace); err != nil {
					return fmt.Errorf("%s: %w", component, err)
				}
			}
			out.Releases = append(out.Releases, rel)
			w.manifests = append(w.manifests, rel.Manifest)
		}
		if len(w.manifests) > 0 {
			all = append(all, w)
		}
	}
	if slices.Contains(components, Base) && !o.DryRun {
		if err := c.waitForKinds(ctx, p, o.Timeout); err != nil {
			return err
		}
		c.Forget()
	}
	if o.DryRun || !o.Wait || slices.Contains(components, Base) {
		for _, w := range all {
			if w.component == Base {
				out.later = append(out.later, w.manifests...)
			}
			o.Progress.Done(w.component, time.Since(w.begun))
		}
		return nil
	}
	for i := range all {
		if all[i].component == Pilot { // it completes the base chart's webhooks
			all[i].manifests = append(all[i].manifests, out.later...)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	var group errgroup.Group // all are waited for: each may have its own trouble to tell
	for _, w := range all {
		group.Go(func() error {
			err := c.waitReady(ctx, p, strings.Join(w.manifests, "\n---\n"), func(doing string) { o.Progress.Begin(w.component, doing) })
			if err != nil {
				o.Progress.Failed(w.component, time.Since(w.begun))
				return fmt.Errorf("%s: %w", w.component, err)
			}
			o.Progress.Done(w.component, time.Since(w.begun))
			return nil
		})
	}
	return group.Wait()
}

// ErrInterrupted is returned when the user stopped an installation or an uninstallation.
var ErrInterrupted = errors.New("interrupted")

// interrupted says how far an installation came.
func interrupted(p *Plan, out *Result) error {
	var done, open []string
	for i, r := range p.Releases {
		if i < len(out.Releases) {
			done = append(done, r.Name)
		} else {
			open = append(open, r.Name)
		}
	}
	switch {
	case len(done) == 0:
		return fmt.Errorf("%w: no Helm release was written; run the same command again to install", ErrInterrupted)
	case len(open) == 0:
		return fmt.Errorf("%w: all Helm releases are written, and not known to be ready: weft verify-install tells, and the same command again waits for them", ErrInterrupted)
	}
	return fmt.Errorf("%w: Helm releases %s are written, %s are not; nothing is half done. Run the same command again to go on", ErrInterrupted, strings.Join(done, ", "), strings.Join(open, ", "))
}
