// SPDX-License-Identifier: GPL-2.0
/*
 * A SmartNIC for the VM lab, laid over an SR-IOV card that QEMU emulates (igb).
 *
 * The physical function keeps its own driver. This module adds what igb lacks:
 *  - a devlink instance whose eswitch goes from legacy to switchdev and back;
 *  - in switchdev mode an uplink port, and for each virtual function a representor which takes flower rules
 *    "in hardware", with the limits of a real card: output to ports of its own switch only, connection tracking only
 *    when enabled, a table of limited size;
 *  - a driver for the virtual functions, so that their network devices come and go as drivers are bound; what one
 *    end of a (virtual function, representor) pair sends, the other receives.
 *
 * Packets that match a rule "in hardware" still take the software path: what is shown is that rules reach the card.
 */
#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/pci.h>
#include <linux/rtnetlink.h>
#include <net/devlink.h>
#include <net/flow_offload.h>
#include <net/pkt_cls.h>

#define MAX_VFS 64
#define PF_NUMBER 0

static char *pf = "0000:01:00.0";
module_param(pf, charp, 0444);
MODULE_PARM_DESC(pf, "PCI address of the physical function");
static unsigned int controller;
module_param(controller, uint, 0444);
MODULE_PARM_DESC(controller, "controller of the functions: 0 this machine's own, else an external host's");
static bool ct;
module_param(ct, bool, 0644);
MODULE_PARM_DESC(ct, "take rules with connection tracking");
static unsigned int table = 1024;
module_param(table, uint, 0644);
MODULE_PARM_DESC(table, "how many rules the card holds");
static unsigned int rules;
module_param(rules, uint, 0444);
MODULE_PARM_DESC(rules, "how many rules the card holds now");

static const u8 switch_id[] = { 0x02, 0xd9, 0x0a, 0xff, 0xfe, 0x1a, 0xb0, 0x00 };

/* A representor or the uplink; `vf` is -1 for the uplink. */
struct port {
	struct devlink_port devlink;
	struct net_device *netdev;
	int vf;
};

/* Everything here changes under the devlink instance's lock. */
struct card {
	struct pci_dev *pdev;
	u16 mode;
	struct port *uplink;
	struct port *representors[MAX_VFS];
	struct net_device *functions[MAX_VFS];
};

struct end {
	struct net_device __rcu *peer;
};

static struct card *card;
static LIST_HEAD(blocks);

/* --- packets ------------------------------------------------------------------------------------------------- */

static netdev_tx_t end_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct end *end = netdev_priv(dev);
	unsigned int length = skb->len;
	struct net_device *peer;

	rcu_read_lock();
	peer = rcu_dereference(end->peer);
	if (!peer || !netif_running(peer)) {
		kfree_skb(skb);
		DEV_STATS_INC(dev, tx_dropped);
	} else if (dev_forward_skb(peer, skb) == NET_RX_SUCCESS) {
		DEV_STATS_INC(dev, tx_packets);
		DEV_STATS_ADD(dev, tx_bytes, length);
		DEV_STATS_INC(peer, rx_packets);
		DEV_STATS_ADD(peer, rx_bytes, length);
	} else {
		DEV_STATS_INC(dev, tx_dropped);
	}
	rcu_read_unlock();
	return NETDEV_TX_OK;
}

static void carriers(struct net_device *dev, struct net_device *peer)
{
	bool both = peer && netif_running(dev) && netif_running(peer);

	(both ? netif_carrier_on : netif_carrier_off)(dev);
	if (peer)
		(both ? netif_carrier_on : netif_carrier_off)(peer);
}

static int end_open(struct net_device *dev)
{
	struct end *end = netdev_priv(dev);

	carriers(dev, rtnl_dereference(end->peer));
	return 0;
}

static int end_stop(struct net_device *dev)
{
	struct end *end = netdev_priv(dev);
	struct net_device *peer = rtnl_dereference(end->peer);

	netif_carrier_off(dev);
	if (peer)
		netif_carrier_off(peer);
	return 0;
}

/* Joins two ends, or takes `one` from whatever it was joined with. */
static void join(struct net_device *one, struct net_device *other)
{
	struct end *end = netdev_priv(one);
	struct net_device *old;

	rtnl_lock();
	old = rtnl_dereference(end->peer);
	if (old) {
		rcu_assign_pointer(((struct end *)netdev_priv(old))->peer, NULL);
		netif_carrier_off(old);
	}
	rcu_assign_pointer(end->peer, other);
	if (other)
		rcu_assign_pointer(((struct end *)netdev_priv(other))->peer, one);
	carriers(one, other);
	rtnl_unlock();
	synchronize_net();
}

/* --- rules --------------------------------------------------------------------------------------------------- */

static int take_rule(struct net_device *dev, struct flow_cls_offload *offload)
{
	struct flow_rule *rule = flow_cls_offload_flow_rule(offload);
	struct netlink_ext_ack *extack = offload->common.extack;
	const struct flow_action_entry *action;
	int i;

	if (flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_CT) && !ct) {
		NL_SET_ERR_MSG_MOD(extack, "this card does not match on connection tracking");
		return -EOPNOTSUPP;
	}
	flow_action_for_each(i, action, &rule->action) {
		switch (action->id) {
		case FLOW_ACTION_REDIRECT:
		case FLOW_ACTION_MIRRED:
			if (!netdev_port_same_parent_id(dev, action->dev)) {
				NL_SET_ERR_MSG_MOD(extack, "output device is no port of this switch");
				return -EOPNOTSUPP;
			}
			break;
		case FLOW_ACTION_CT:
			if (!ct) {
				NL_SET_ERR_MSG_MOD(extack, "this card tracks no connections");
				return -EOPNOTSUPP;
			}
			break;
		case FLOW_ACTION_DROP:
		case FLOW_ACTION_GOTO:
		case FLOW_ACTION_MANGLE:
		case FLOW_ACTION_CSUM:
		case FLOW_ACTION_TUNNEL_ENCAP:
		case FLOW_ACTION_TUNNEL_DECAP:
		case FLOW_ACTION_VLAN_PUSH:
		case FLOW_ACTION_VLAN_POP:
			break;
		default:
			NL_SET_ERR_MSG_MOD(extack, "action is not known to this card");
			return -EOPNOTSUPP;
		}
	}
	if (rules >= table) {
		NL_SET_ERR_MSG_MOD(extack, "the card's table is full");
		return -ENOSPC;
	}
	rules++;
	return 0;
}

static int on_rule(enum tc_setup_type type, void *data, void *private)
{
	struct flow_cls_offload *offload = data;

	if (type != TC_SETUP_CLSFLOWER)
		return -EOPNOTSUPP;
	switch (offload->command) {
	case FLOW_CLS_REPLACE:
		return take_rule(private, offload);
	case FLOW_CLS_DESTROY:
		rules--;
		return 0;
	case FLOW_CLS_STATS:
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static int port_setup_tc(struct net_device *dev, enum tc_setup_type type, void *data)
{
	if (type != TC_SETUP_BLOCK)
		return -EOPNOTSUPP;
	return flow_block_cb_setup_simple(data, &blocks, on_rule, dev, dev, true);
}

/* --- network devices ----------------------------------------------------------------------------------------- */

static const struct net_device_ops function_ops = {
	.ndo_open = end_open,
	.ndo_stop = end_stop,
	.ndo_start_xmit = end_xmit,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
};

static const struct net_device_ops port_ops = {
	.ndo_open = end_open,
	.ndo_stop = end_stop,
	.ndo_start_xmit = end_xmit,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
	.ndo_setup_tc = port_setup_tc,
};

static void end_drvinfo(struct net_device *dev, struct ethtool_drvinfo *info)
{
	strscpy(info->driver, dev->netdev_ops == &port_ops ? "dpu_lab_rep" : "dpu_lab", sizeof(info->driver));
}

static const struct ethtool_ops end_ethtool_ops = {
	.get_drvinfo = end_drvinfo,
	.get_link = ethtool_op_get_link,
};

static struct net_device *make_end(const char *name, const struct net_device_ops *ops, struct device *parent,
				   struct devlink_port *port, const u8 *mac)
{
	struct net_device *dev = alloc_netdev(sizeof(struct end), name, NET_NAME_ENUM, ether_setup);
	int error;

	if (!dev)
		return ERR_PTR(-ENOMEM);
	dev->netdev_ops = ops;
	dev->ethtool_ops = &end_ethtool_ops;
	dev->lltx = true;
	dev->max_mtu = 9600;
	dev->features |= NETIF_F_SG | NETIF_F_HIGHDMA;
	if (ops == &port_ops) {
		dev->features |= NETIF_F_HW_TC;
		dev->hw_features |= NETIF_F_HW_TC;
	}
	if (mac && is_valid_ether_addr(mac))
		eth_hw_addr_set(dev, mac);
	else
		eth_hw_addr_random(dev);
	SET_NETDEV_DEV(dev, parent);
	if (port)
		SET_NETDEV_DEVLINK_PORT(dev, port);
	netif_carrier_off(dev);
	error = register_netdev(dev);
	if (error) {
		free_netdev(dev);
		return ERR_PTR(error);
	}
	return dev;
}

static void drop_end(struct net_device *dev)
{
	join(dev, NULL);
	unregister_netdev(dev);
	free_netdev(dev);
}

/* --- ports of the switch ------------------------------------------------------------------------------------- */

static struct net_device *pf_netdev(void)
{
	/* igb keeps its network device there; another driver may not. */
	return card->pdev->driver && !strcmp(card->pdev->driver->name, "igb") ? pci_get_drvdata(card->pdev) : NULL;
}

/*
 * The MAC that the physical function has for a virtual one, which a virtual function's driver asks for as it starts.
 * Not under the rtnl lock: devlink asks for it both with and without that lock held. igb copies it from a table that
 * outlives the virtual functions.
 */
static void admin_mac(int vf, u8 *mac)
{
	struct net_device *dev = pf_netdev();
	struct ifla_vf_info info = {};

	eth_zero_addr(mac);
	if (!dev || !dev->netdev_ops->ndo_get_vf_config)
		return;
	if (!dev->netdev_ops->ndo_get_vf_config(dev, vf, &info))
		ether_addr_copy(mac, info.mac);
}

static int hw_addr_get(struct devlink_port *devlink, u8 *address, int *length, struct netlink_ext_ack *extack)
{
	struct port *port = container_of(devlink, struct port, devlink);

	admin_mac(port->vf, address);
	*length = ETH_ALEN;
	return 0;
}

static int hw_addr_set(struct devlink_port *devlink, const u8 *address, int length, struct netlink_ext_ack *extack)
{
	struct port *port = container_of(devlink, struct port, devlink);
	struct net_device *dev = pf_netdev();
	u8 mac[ETH_ALEN];
	int error;

	if (!dev || !dev->netdev_ops->ndo_set_vf_mac || length != ETH_ALEN)
		return -EOPNOTSUPP;
	ether_addr_copy(mac, address);
	rtnl_lock();
	error = dev->netdev_ops->ndo_set_vf_mac(dev, port->vf, mac);
	rtnl_unlock();
	return error;
}

static const struct devlink_port_ops representor_ops = {
	.port_fn_hw_addr_get = hw_addr_get,
	.port_fn_hw_addr_set = hw_addr_set,
};

static const struct devlink_port_ops uplink_ops = {};

static struct port *make_port(int vf)
{
	struct port *port = kzalloc(sizeof(*port), GFP_KERNEL);
	struct devlink_port_attrs attrs = {};
	char name[IFNAMSIZ];
	int error;

	if (!port)
		return ERR_PTR(-ENOMEM);
	port->vf = vf;
	attrs.switch_id.id_len = sizeof(switch_id);
	memcpy(attrs.switch_id.id, switch_id, sizeof(switch_id));
	if (vf < 0) {
		attrs.flavour = DEVLINK_PORT_FLAVOUR_PHYSICAL;
		attrs.phys.port_number = PF_NUMBER;
		devlink_port_attrs_set(&port->devlink, &attrs);
		snprintf(name, sizeof(name), "uplink%%d");
	} else {
		port->devlink.attrs.switch_id = attrs.switch_id;
		devlink_port_attrs_pci_vf_set(&port->devlink, controller, PF_NUMBER, vf, controller > 0);
		snprintf(name, sizeof(name), "rep%d", vf);
	}
	error = devl_port_register_with_ops(priv_to_devlink(card), &port->devlink, vf + 1,
					    vf < 0 ? &uplink_ops : &representor_ops);
	if (error)
		goto free;
	port->netdev = make_end(name, &port_ops, &card->pdev->dev, &port->devlink, NULL);
	if (IS_ERR(port->netdev)) {
		error = PTR_ERR(port->netdev);
		devl_port_unregister(&port->devlink);
		goto free;
	}
	return port;
free:
	kfree(port);
	return ERR_PTR(error);
}

static void drop_port(struct port *port)
{
	drop_end(port->netdev);
	devl_port_unregister(&port->devlink);
	kfree(port);
}

static int add_representor(int vf)
{
	struct port *port;

	if (vf < 0 || vf >= MAX_VFS || card->representors[vf])
		return 0;
	port = make_port(vf);
	if (IS_ERR(port))
		return PTR_ERR(port);
	card->representors[vf] = port;
	if (card->functions[vf])
		join(port->netdev, card->functions[vf]);
	return 0;
}

static void remove_representor(int vf)
{
	if (vf < 0 || vf >= MAX_VFS || !card->representors[vf])
		return;
	drop_port(card->representors[vf]);
	card->representors[vf] = NULL;
}

static void leave_switchdev(void)
{
	int vf;

	for (vf = 0; vf < MAX_VFS; vf++)
		remove_representor(vf);
	if (card->uplink)
		drop_port(card->uplink);
	card->uplink = NULL;
	card->mode = DEVLINK_ESWITCH_MODE_LEGACY;
}

static int enter_switchdev(void)
{
	struct port *uplink = make_port(-1);
	int vf, error = 0;

	if (IS_ERR(uplink))
		return PTR_ERR(uplink);
	card->uplink = uplink;
	for (vf = 0; vf < pci_num_vf(card->pdev) && !error; vf++)
		error = add_representor(vf);
	if (error)
		leave_switchdev();
	else
		card->mode = DEVLINK_ESWITCH_MODE_SWITCHDEV;
	return error;
}

static int mode_get(struct devlink *devlink, u16 *mode)
{
	*mode = card->mode;
	return 0;
}

static int mode_set(struct devlink *devlink, u16 mode, struct netlink_ext_ack *extack)
{
	if (mode == card->mode)
		return 0;
	if (mode == DEVLINK_ESWITCH_MODE_SWITCHDEV)
		return enter_switchdev();
	leave_switchdev();
	return 0;
}

static const struct devlink_ops card_ops = {
	.eswitch_mode_get = mode_get,
	.eswitch_mode_set = mode_set,
};

/* --- virtual functions --------------------------------------------------------------------------------------- */

static bool is_ours(struct device *dev)
{
	return dev_is_pci(dev) && to_pci_dev(dev)->is_virtfn && pci_physfn(to_pci_dev(dev)) == card->pdev;
}

static int on_bus(struct notifier_block *block, unsigned long event, void *data)
{
	struct devlink *devlink = priv_to_devlink(card);
	int vf, error = 0;

	if ((event != BUS_NOTIFY_ADD_DEVICE && event != BUS_NOTIFY_DEL_DEVICE) || !is_ours(data))
		return NOTIFY_DONE;
	vf = pci_iov_vf_id(to_pci_dev(data));
	devl_lock(devlink);
	if (event == BUS_NOTIFY_DEL_DEVICE)
		remove_representor(vf);
	else if (card->mode == DEVLINK_ESWITCH_MODE_SWITCHDEV)
		error = add_representor(vf);
	devl_unlock(devlink);
	if (error)
		pci_warn(card->pdev, "no representor for VF %d: %d\n", vf, error);
	return NOTIFY_DONE;
}

static struct notifier_block bus_block = { .notifier_call = on_bus };

static int vf_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct devlink *devlink = priv_to_devlink(card);
	struct net_device *dev;
	char name[IFNAMSIZ];
	u8 mac[ETH_ALEN];
	int vf;

	if (!is_ours(&pdev->dev))
		return -ENODEV;
	vf = pci_iov_vf_id(pdev);
	if (vf < 0 || vf >= MAX_VFS)
		return -ENODEV;
	admin_mac(vf, mac);
	snprintf(name, sizeof(name), "labvf%d", vf);
	devl_lock(devlink);
	dev = make_end(name, &function_ops, &pdev->dev, NULL, mac);
	if (!IS_ERR(dev)) {
		card->functions[vf] = dev;
		pci_set_drvdata(pdev, dev);
		if (card->representors[vf])
			join(dev, card->representors[vf]->netdev);
	}
	devl_unlock(devlink);
	return PTR_ERR_OR_ZERO(dev);
}

static void vf_remove(struct pci_dev *pdev)
{
	struct devlink *devlink = priv_to_devlink(card);

	devl_lock(devlink);
	drop_end(pci_get_drvdata(pdev));
	card->functions[pci_iov_vf_id(pdev)] = NULL;
	devl_unlock(devlink);
}

static const struct pci_device_id vf_ids[] = {
	{ PCI_VDEVICE(INTEL, 0x10ca) },
	{}
};

static struct pci_driver vf_driver = {
	.name = "dpu_lab",
	.id_table = vf_ids,
	.probe = vf_probe,
	.remove = vf_remove,
};

/* --- the module ---------------------------------------------------------------------------------------------- */

static int __init dpu_lab_init(void)
{
	unsigned int domain, bus, slot, function;
	struct devlink *devlink;
	struct pci_dev *pdev;
	int error;

	if (sscanf(pf, "%x:%x:%x.%x", &domain, &bus, &slot, &function) != 4)
		return -EINVAL;
	pdev = pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, function));
	if (!pdev)
		return -ENODEV;
	devlink = devlink_alloc(&card_ops, sizeof(*card), &pdev->dev);
	if (!devlink) {
		pci_dev_put(pdev);
		return -ENOMEM;
	}
	card = devlink_priv(devlink);
	card->pdev = pdev;
	error = bus_register_notifier(&pci_bus_type, &bus_block);
	if (error)
		goto free;
	error = pci_register_driver(&vf_driver);
	if (error)
		goto unregister;
	devlink_register(devlink);
	return 0;
unregister:
	bus_unregister_notifier(&pci_bus_type, &bus_block);
free:
	devlink_free(devlink);
	pci_dev_put(pdev);
	return error;
}

static void __exit dpu_lab_exit(void)
{
	struct devlink *devlink = priv_to_devlink(card);
	struct pci_dev *pdev = card->pdev;

	devlink_unregister(devlink);
	bus_unregister_notifier(&pci_bus_type, &bus_block);
	pci_unregister_driver(&vf_driver);
	devl_lock(devlink);
	leave_switchdev();
	devl_unlock(devlink);
	devlink_free(devlink);
	pci_dev_put(pdev);
}

module_init(dpu_lab_init);
module_exit(dpu_lab_exit);
MODULE_DESCRIPTION("Eswitch, representors and VF driver over an emulated SR-IOV card");
MODULE_LICENSE("GPL");
