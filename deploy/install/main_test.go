package install

import (
	"os"
	"testing"

	"github.com/weft-mesh/weft/e2e/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.PrivateNetwork(m)) }
