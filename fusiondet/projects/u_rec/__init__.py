"""U-REC (P5): segmentation and reconstruction from one encoder, and its data set, ISPRS Vaihingen."""

from fusiondet.plugins import Project

_HERE = "fusiondet.projects.u_rec"

PROJECT = Project(
    add_config=f"{_HERE}.u_rec_config:add_u_rec_config",
    dense_networks={"UREC": f"{_HERE}.u_rec"},
    converters={
        "vaihingen": (f"{_HERE}.vaihingen", "ISPRS Vaihingen: near infrared, red, green, and six classes"),
    },
    shaping_keys=("MODEL.DENSE_NET.U_REC.W1",),
)
