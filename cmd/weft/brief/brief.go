// Package brief makes commands start faster: nothing is collected while they do. Initialising the packages behind weft (Helm, the
// Kubernetes kinds, Envoy's messages) leaves 10 MB on the heap, nearly all of it for good, and with the default of 4 MB the collector
// runs three times over that before main begins: a third of what `weft version` costs.
//
// Go initialises packages in the order of their import paths as soon as what they import is ready. This one imports little, so it
// comes before almost all that is big.
package brief

import (
	"os"
	"runtime/debug"
	"time"
)

const (
	collectAt = 400 // percent; the first collection is at 16 MB
	usual     = 100
	short     = time.Second // a command that lives longer is none that hurries
)

func init() {
	if _, said := os.LookupEnv("GOGC"); said {
		return
	}
	debug.SetGCPercent(collectAt)
	time.AfterFunc(short, func() { debug.SetGCPercent(usual) })
}
