package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"regexp"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	helm "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"

	"github.com/weft-mesh/weft/deploy"
)

// abandoned is how long a release may be "pending" before we say that whoever worked on it is gone. A step of ours
// takes a second or two: readiness is waited for afterwards.
const abandoned = time.Minute

// helmIn prepares Helm for one namespace.
func (c *Cluster) helmIn(namespace string) (*action.Configuration, error) {
	kube.ManagedFieldsManager = "helm" // what a helm upgrade by hand calls itself: no conflicts with it
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := cfg.Init(c, namespace, ""); err != nil {
		return nil, err
	}
	return cfg, nil
}

// last is the newest version of a release; nil when there is none.
func last(cfg *action.Configuration, name string) (*helm.Release, error) {
	r, err := cfg.Releases.Last(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Helm release %s: %w", name, err)
	}
	rel, ok := r.(*helm.Release)
	if !ok {
		return nil, fmt.Errorf("release %s of Helm is of a kind (%T) that weft does not know: use helm for it", name, r)
	}
	return rel, nil
}

// release is the newest version of a release in a namespace; nil when there is none.
func (c *Cluster) release(namespace, name string) (*helm.Release, error) {
	cfg, err := c.helmIn(namespace)
	if err != nil {
		return nil, err
	}
	rel, err := last(cfg, name)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return rel, nil
}

// ours says whether a chart is one of package deploy.
func ours(c *chart.Chart) bool {
	return c != nil && c.Metadata != nil && strings.Contains(c.Metadata.Home+strings.Join(c.Metadata.Sources, " "), "weft-mesh/weft")
}

// apply installs or upgrades one release; what stands in its manifest afterwards is returned. It cannot be interrupted: Helm
// would leave the release half done.
func (c *Cluster) apply(ctx context.Context, r Release, o Options) (*helm.Release, error) {
	cfg, err := c.helmIn(r.Namespace)
	if err != nil {
		return nil, err
	}
	ch, err := deploy.Chart(r.Chart)
	if err != nil {
		return nil, err
	}
	was, err := c.takeOver(ctx, cfg, r.Name, o)
	if err != nil {
		return nil, err
	}
	if was != nil && !ours(was.Chart) && !o.Force {
		return nil, fmt.Errorf("release %s of Helm in namespace %s is chart %s, not weft's: another mesh is installed there. "+
			"Install beside it as a revision (--revision weft), or uninstall it (helm uninstall %s -n %s)",
			r.Name, r.Namespace, was.Chart.Metadata.Name+" "+was.Chart.Metadata.Version, r.Name, r.Namespace)
	}
	takes := o.TakeOwnership
	// Definitions that nobody has (made by kubectl, or left by Istio's releases) are the same API: taking them over changes no object of the
	// user's. What another mesh has was left out before.
	takes = takes || r.Chart == deploy.Base
	uninterrupted := context.WithoutCancel(ctx)
	strategy := action.DryRunNone
	if o.DryRun {
		strategy = action.DryRunServer
	}
	if was == nil || was.Info.Status == common.StatusUninstalled {
		in := action.NewInstall(cfg)
		in.ReleaseName, in.Namespace, in.PostRenderer = r.Name, r.Namespace, r
		in.WaitStrategy, in.Timeout = kube.HookOnlyStrategy, requestTimeout
		in.TakeOwnership, in.ForceConflicts, in.Replace = takes, true, was != nil
		in.DisableOpenAPIValidation = true // the API server validates what is applied, and 900 KB of CRDs take seconds here
		in.DryRunStrategy, in.HideSecret = strategy, o.DryRun
		got, err := in.RunWithContext(uninterrupted, ch, r.Values)
		return result(got, r, err)
	}
	up := action.NewUpgrade(cfg)
	up.Namespace, up.PostRenderer, up.ResetValues = r.Namespace, r, true
	up.WaitStrategy, up.Timeout = kube.HookOnlyStrategy, requestTimeout
	up.TakeOwnership, up.ForceConflicts, up.MaxHistory = takes, true, 10
	up.ServerSideApply, up.DisableOpenAPIValidation = "true", true
	if !o.DryRun {
		if same, err := c.unchanged(ctx, was, r, up, ch); err != nil || same {
			return was, err
		}
	}
	up.DryRunStrategy, up.HideSecret = strategy, o.DryRun
	got, err := up.RunWithContext(uninterrupted, r.Name, ch, r.Values)
	return result(got, r, err)
}

// unchanged says whether an upgrade would change nothing: it would render what was installed, and all of that is in the cluster. Writing
// the definitions again costs the API server seconds, and a version of the release.
func (c *Cluster) unchanged(ctx context.Context, was *helm.Release, r Release, up *action.Upgrade, ch *chart.Chart) (bool, error) {
	if was.Info.Status != common.StatusDeployed || !reflect.DeepEqual(whole(clone(was.Config)), whole(clone(r.Values))) {
		return false, nil
	}
	up.DryRunStrategy = action.DryRunServer
	got, err := up.RunWithContext(ctx, r.Name, ch, r.Values)
	next, err := result(got, r, err)
	if err != nil || next.Manifest != was.Manifest {
		return false, err
	}
	objects, err := readObjects([]byte(was.Manifest))
	if err != nil {
		return false, err
	}
	for _, o := range objects {
		live, err := c.get(ctx, o, r.Namespace)
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if len(differences(o, live, "")) > 0 {
			return false, nil
		}
	}
	return true, nil
}

func result(got any, r Release, err error) (*helm.Release, error) {
	if err != nil {
		return nil, explain(r, err)
	}
	rel, ok := got.(*helm.Release)
	if !ok {
		return nil, fmt.Errorf("release %s of Helm: Helm returned a %T", r.Name, got)
	}
	return rel, nil
}

// takeOver returns the newest version of a release, once nobody works on it. One that was left in the middle by a program that is
// gone is marked as failed, so that Helm goes on from there.
func (c *Cluster) takeOver(ctx context.Context, cfg *action.Configuration, name string, o Options) (*helm.Release, error) {
	for said := false; ; {
		rel, err := last(cfg, name)
		if err != nil || rel == nil || o.DryRun {
			return rel, err
		}
		since := rel.Info.LastDeployed
		switch {
		case rel.Info.Status == common.StatusUninstalling:
			since = rel.Info.Deleted
		case !rel.Info.Status.IsPending():
			return rel, nil
		}
		age := time.Since(since)
		if age > abandoned {
			rel.SetStatus(common.StatusFailed, "interrupted; weft goes on")
			return rel, cfg.Releases.Update(rel)
		}
		if !said {
			said = true
			o.Progress.Note(fmt.Sprintf("Helm release %s is %s since %s: somebody else is at it, or was killed in the middle; waiting for them, at most %s", name, rel.Info.Status, since.Format(time.TimeOnly), (abandoned - age).Round(time.Second)))
		}
		if err := pause(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

// pause waits unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

var (
	ownedBy = regexp.MustCompile(`"meta\.helm\.sh/release-(name|namespace)" must equal "[^"]*": current value is "([^"]+)"`)
	exists  = regexp.MustCompile(`(?:unable to continue with (?:install|update): )?(\S+ "[^"]+" in namespace "[^"]*") exists and cannot be imported into the current release`)
)

// explain words Helm's errors for who did not use Helm.
func explain(r Release, err error) error {
	text := err.Error()
	m := exists.FindStringSubmatch(text)
	if m == nil {
		if strings.Contains(text, "values don't meet the specifications of the schema") {
			return errors.New(schemaMistakes(text))
		}
		return fmt.Errorf("release %s of Helm: %w", r.Name, err)
	}
	object := strings.Replace(m[1], ` in namespace ""`, "", 1)
	if differ := ownedBy.FindAllStringSubmatch(text, -1); differ != nil {
		owner := map[string]string{"name": r.Name, "namespace": r.Namespace}
		for _, d := range differ {
			owner[d[1]] = d[2]
		}
		return fmt.Errorf("%s belongs to Helm release %s/%s: upgrade that one with helm, or remove it first (helm uninstall %[3]s -n %[2]s)", object, owner["namespace"], owner["name"])
	}
	return fmt.Errorf("%s exists and was not made by weft or Helm (istioctl, or kubectl apply): remove what made it, "+
		"install under another revision (--revision), or take it over with --take-ownership, which lays weft's settings over the object", object)
}

// schemaMistakes turns the report of a values schema into lines with istioctl's paths.
func schemaMistakes(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "- at '"); ok {
			path, what, _ := strings.Cut(rest, "': ")
			out = append(out, "values"+strings.ReplaceAll(path, "/", ".")+": "+what)
		}
	}
	if len(out) == 0 {
		return text
	}
	return strings.Join(out, "\n") + "\n(values that no chart reads yet go below unvalidatedValues)"
}
