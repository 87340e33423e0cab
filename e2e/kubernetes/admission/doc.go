// Package admission tests the admission webhook behind a real API server: with the webhook configuration of the chart, beside
// other people's webhooks, under Pod Security, and for all the ways in which pods come into being. It has tests only; there
// are no nodes, so no pod runs. Open admission_test.go.
package admission
