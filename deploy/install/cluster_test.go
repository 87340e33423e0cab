package install

import (
	"context"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kubernetes"
)

// told collects what a Progress is told.
type told struct {
	t     *testing.T
	notes []string
}

func (p *told) Begin(c, doing string)            { p.t.Logf("%s: %s", c, doing) }
func (p *told) Done(c string, d time.Duration)   { p.t.Logf("%s done %s", c, d) }
func (p *told) Failed(c string, d time.Duration) { p.t.Logf("%s failed %s", c, d) }
func (p *told) Note(text string)                 { p.notes = append(p.notes, text); p.t.Log(text) }

func TestAnInstallationOnARealAPIServer(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	c, err := ConnectTo(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	progress := &told{t: t}
	got, err := c.Install(ctx, plan(t, Input{Sets: []string{"profile=demo"}}), Options{Progress: progress, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range got.Releases {
		t.Log(r.Name, r.Version, r.Info.Status, len(r.Manifest))
	}
	v, err := c.Verify(ctx, DefaultNamespace, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range v.Checks {
		t.Log(k)
	}
}
