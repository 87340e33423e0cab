package install

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/release/common"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/e2e/kubernetes"
)

// stopAt is a Progress that ends a context when a component is at something.
type stopAt struct {
	told
	component, doing string
	stop             context.CancelFunc
}

func (s *stopAt) Begin(component, doing string) {
	if component == s.component && strings.Contains(doing, s.doing) {
		s.stop()
	}
}

// Ctrl-C ends the context. Whenever that happens, nothing is half done, the message says what is, and the next run goes on.
func TestInterruptedRunsAreGoneOnWith(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	c, err := ConnectTo(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	demo := func() *Plan { return plan(t, Input{Sets: []string{"profile=demo"}}) }
	options := Options{Timeout: time.Minute}
	states := func() string {
		t.Helper()
		all, err := c.releases(ctx, DefaultNamespace)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range all {
			if r.Info.Status != common.StatusDeployed {
				t.Errorf("release %s is left %s", r.Name, r.Info.Status)
			}
			out = append(out, r.Name)
		}
		return strings.Join(out, " ")
	}
	for _, stage := range []struct {
		component, doing string
		wait             bool
		says             []string
		left             string
	}{
		{Base, "writing", false, []string{"istio-base are written", "istio-cni, istio-ingressgateway, istio-egressgateway are not"}, "istio-base"},
		{Pilot, "writing", false, []string{"istio-base, istiod are written"}, "istio-base istiod"},
		{Pilot, "looked at", true, []string{"istio-base, istiod, istio-cni are written", "istio-ingressgateway"}, "istio-base istiod istio-cni"},
		{Egress, "writing", false, []string{"all Helm releases are written", "verify-install"}, "istio-base istiod istio-cni istio-egressgateway istio-ingressgateway"},
	} {
		t.Run("install, "+stage.component+" "+stage.doing, func(t *testing.T) {
			stopped, stop := context.WithCancel(ctx)
			defer stop()
			o := options
			o.Wait, o.Progress = stage.wait, &stopAt{component: stage.component, doing: stage.doing, stop: stop}
			_, err := c.Install(stopped, demo(), o)
			if !errors.Is(err, ErrInterrupted) {
				t.Fatalf("got %v", err)
			}
			for _, words := range stage.says {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("no %q in: %v", words, err)
				}
			}
			if got := states(); got != stage.left {
				t.Errorf("there are releases %s", got)
			}
		})
	}
	t.Run("install goes on", func(t *testing.T) {
		if _, err := c.Install(ctx, demo(), options); err != nil {
			t.Fatal(err)
		}
		if state, err := c.recorded(ctx, DefaultNamespace, ""); err != nil || state == nil {
			t.Errorf("what was asked for is not recorded: %v", err)
		}
	})
	// What a killed program leaves is a release in the middle, with some of its objects.
	for _, status := range []common.Status{common.StatusPendingInstall, common.StatusPendingUpgrade, common.StatusPendingRollback, common.StatusUninstalling} {
		t.Run("killed, and left "+string(status), func(t *testing.T) {
			cfg, err := c.helmIn(DefaultNamespace)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := last(cfg, "istiod")
			if err != nil {
				t.Fatal(err)
			}
			rel.SetStatus(status, "")
			rel.Info.LastDeployed = time.Now().Add(-2 * abandoned)
			rel.Info.Deleted = rel.Info.LastDeployed
			if err := cfg.Releases.Update(rel); err != nil {
				t.Fatal(err)
			}
			if err := c.AppsV1().Deployments(DefaultNamespace).Delete(ctx, "istiod", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Install(ctx, demo(), options); err != nil {
				t.Fatal(err)
			}
			states()
			if _, err := c.AppsV1().Deployments(DefaultNamespace).Get(ctx, "istiod", metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("somebody else is at it", func(t *testing.T) {
		cfg, err := c.helmIn(DefaultNamespace)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := last(cfg, "istio-base")
		if err != nil {
			t.Fatal(err)
		}
		rel.SetStatus(common.StatusPendingUpgrade, "")
		rel.Info.LastDeployed = time.Now()
		if err := cfg.Releases.Update(rel); err != nil {
			t.Fatal(err)
		}
		stopped, stop := context.WithCancel(ctx)
		defer stop()
		p := &noted{stop: stop}
		_, err = c.Install(stopped, demo(), Options{Timeout: time.Minute, Progress: p})
		if !errors.Is(err, ErrInterrupted) || !strings.Contains(err.Error(), "no Helm release was written") {
			t.Errorf("got %v", err)
		}
		if len(p.notes) != 1 || !strings.Contains(p.notes[0], "istio-base is pending-upgrade") {
			t.Errorf("told %q", p.notes)
		}
		rel.SetStatus(common.StatusDeployed, "")
		if err := cfg.Releases.Update(rel); err != nil {
			t.Fatal(err)
		}
	})
	for _, component := range []string{"Helm release istio-ingressgateway", "Node agents", "Helm release istiod"} {
		t.Run("uninstall, "+component, func(t *testing.T) {
			r, err := c.PlanRemoval(ctx, DefaultNamespace, "", false)
			if err != nil {
				t.Fatal(err)
			}
			stopped, stop := context.WithCancel(ctx)
			defer stop()
			p := &stopAt{component: component, stop: stop}
			// No agent runs here, and none can undo anything.
			err = c.Uninstall(stopped, r, UninstallOptions{Timeout: time.Second, Force: true, Progress: p})
			if !errors.Is(err, ErrInterrupted) || !strings.Contains(err.Error(), "run weft uninstall again") {
				t.Fatalf("got %v", err)
			}
			states()
		})
	}
	t.Run("uninstall goes on, though the control plane is gone", func(t *testing.T) {
		if got := states(); got != "istio-base" {
			t.Errorf("there are releases %q", got)
		}
		r, err := c.PlanRemoval(ctx, DefaultNamespace, "", false)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Uninstall(ctx, r, UninstallOptions{Timeout: time.Second}); err != nil {
			t.Fatal(err)
		}
		if got := states(); got != "" {
			t.Errorf("there are releases %q", got)
		}
		_, err = c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "istiod-default-validator", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			t.Errorf("the validator is left: %v", err)
		}
		if _, err := c.PlanRemoval(ctx, DefaultNamespace, "", false); err == nil || !strings.Contains(err.Error(), "not installed") {
			t.Errorf("removed twice: %v", err)
		}
	})
}

// noted ends a context when it is told something.
type noted struct {
	told
	stop context.CancelFunc
}

func (n *noted) Note(text string) {
	n.told.Note(text)
	n.stop()
}
