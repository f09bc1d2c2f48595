// Package feed tells many agents of the same things without saying them anew to each.
//
// A Feed is a collection of things by their keys: the hosts of the fleet, the apps of one environment, the instances there.
// What has changed in it is encoded once, as a few pieces of bytes, and each agent is sent these very bytes. One that has
// missed more than is remembered, or has just come, gets the whole in pieces, which are encoded once too. A Known is the
// other end: it puts together what the pieces say.
//
// The package knows nothing of who may hear of what, nor when: that is the server's. What becomes of it is the agent's.
package feed
